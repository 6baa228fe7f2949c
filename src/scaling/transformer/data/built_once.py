"""Build a folder once, by one of any number of processes: under its name it is complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from scaling.core import file_lock, storage_errors, sync_folder
from scaling.transformer.data.progress import ProgressCallback


def built_once(
    final: Path,
    *,
    intact: Callable[[Path], bool],
    build: Callable[[Path], None],
    what: str,
    progress: ProgressCallback,
) -> Path:
    """Return the folder `final`, building it where it is missing or not intact.

    Any number of processes may call this at once: one builds, the others wait for it. The folder appears by one rename;
    the next build removes the remains of one that was killed.

    Raises:
        StorageError: The folder cannot be written.
    """
    if intact(final):
        return final
    with storage_errors(f"building {what} in {final.parent}"):
        final.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that builds {what}"
        with file_lock(final.parent / f".{final.name}.lock", on_wait=lambda: progress(waiting, 0, 1)):
            if not intact(final):
                building = final.parent / f".{final.name}.building"
                for rest in (building, final):
                    if rest.exists():
                        shutil.rmtree(rest)
                building.mkdir()
                try:
                    build(building)
                    building.rename(final)
                except BaseException:  # such as a signal
                    shutil.rmtree(building, ignore_errors=True)
                    raise
                sync_folder(final.parent)
    return final
