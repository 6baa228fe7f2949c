"""Write files so that a kill, a crash or a full disk at any moment leaves the old content or the new."""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from scaling.core.errors import StorageError

TEMPORARY_PREFIX: Final = ".tmp-"
"""Prefix of the names of files and folders that are not complete yet. A kill leaves them behind."""

_CANNOT_SYNC_FOLDERS: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that nobody else, on any machine, is writing to."""
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")


def write_fully(descriptor: int, data: memoryview) -> None:
    """Write all of `data`: a single `write` may stop early, for example just before the disk is full."""
    while len(data):
        data = data[os.write(descriptor, data) :]


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Append to an unbuffered file all of `data`, or nothing and raise an OSError: half a line spoils the next one."""
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(data) != len(data):
            raise OSError(f"{file.name} is out of space")
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def write_durably(path: Path, data: bytes, *, halfway: Callable[[], None] | None = None) -> None:
    """Create a file with this content and force it to the disk; call `halfway` in the middle."""
    with path.open("xb") as file:
        middle = len(data) // 2
        write_fully(file.fileno(), memoryview(data)[:middle])
        if halfway is not None:
            halfway()
        write_fully(file.fileno(), memoryview(data)[middle:])
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file by one rename: readers find either the old content or the new, also after a kill.

    `durable` forces the content to the disk first, so that it survives a crash of the machine; a file that is written
    often and may be lost need not wait for that. A symbolic link is kept and its target replaced; a pipe or a device,
    such as /dev/null or /dev/stdout, is written to directly.

    Raises:
        OSError: The file cannot be written.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    temporary = temporary_name(path)
    try:
        if durable:
            write_durably(temporary, content)
        else:
            temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file that people and schedulers read, by one rename. It is not forced to the disk."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode(), durable=False)


def sync_folder(path: Path) -> None:
    """Make the renames within a folder durable, where the file system can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def require_writable(path: Path) -> None:
    """Check, before long work, that the file `path` can be written. Creates its folder.

    Raises:
        StorageError: The file cannot be written.
    """
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn errors of the operating system into a `StorageError` that says what was being done."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(
            f"{doing} failed: {error.strerror or error}{where}; check the path, its rights and free space."
        ) from error
