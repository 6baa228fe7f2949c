"""A folder that is written under a temporary name beside its place and published by one rename."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from re import fullmatch
from typing import Any

from scaling.core import ConfigError, StorageError, sync_folder, temporary_name, write_atomically


def require_free(target: Path) -> None:
    """Refuse a place where something exists, other than an empty folder."""
    try:
        taken = target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))
    except OSError as error:
        raise StorageError(f"{target} cannot be looked into: {error.strerror}; name another folder") from error
    if taken:
        raise ConfigError(f"{target} is there already and not an empty folder; name another one, or remove it")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield the folder to write into; after a kill or on a full disk, nothing is left at `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    _sweep(temporary)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        require_free(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.absolute().parent)


def _sweep(temporary: Path) -> None:
    """Remove the leftovers of killed exports to the same place."""
    begin = temporary.name[: -len(temporary.name.rpartition("-")[2])]
    for path in list(temporary.parent.iterdir()):
        if path.name.startswith(begin) and fullmatch(r"[0-9a-f]{8}", path.name[len(begin) :]) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as text that people can compare."""
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode())
