"""Files that a kill at any moment leaves either old or new, and locks by which processes take turns."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scaling.core import StorageError


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn operating-system errors into a StorageError that says what was being done."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(
            f"{doing} failed: {error.strerror or error}{where}; check the path, its rights and free space."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by one rename, after its new content is on the disk.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def require_writable(path: Path) -> None:
    """Make sure, before long work, that the file `path` can be written; its folder is made.

    Raises:
        StorageError: It cannot.
    """
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def sync_directory(directory: Path) -> None:
    """Make renames within a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; another process that asks for it waits until then.

    The system releases the lock when its holder dies, however it dies, so a lock file that lies around stops nobody.
    `on_wait` is called once where the lock is taken.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
