"""Files that a kill at any moment leaves old or new, locks that do not outlive their holder, values of JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.storage.json_values import unique_keys as unique_keys
    from scaling.core.storage.lock import file_lock as file_lock
    from scaling.core.storage.writing import storage_errors as storage_errors
    from scaling.core.storage.writing import sync_folder as sync_folder
    from scaling.core.storage.writing import temporary_name as temporary_name
    from scaling.core.storage.writing import write_atomically as write_atomically

load_on_use(__name__)
