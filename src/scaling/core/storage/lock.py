"""File locks by which processes take turns. The kernel holds them, so no lock outlives the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from scaling.core.errors import StorageError

FILE_NAME: Final = ".lock"
PATIENCE_SECONDS: Final = 10.0
"""How long a preceding run that was asked to leave may take to end."""

_PAUSE_SECONDS: Final = 0.1
_HELD: Final = frozenset({errno.EACCES, errno.EAGAIN})
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(directory: Path, *, setting: str, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Let one run at a time write to a folder of checkpoints or logs: two would delete each other's unfinished files.

    Raises `StorageError` if another process holds the lock for longer than `patience` seconds; the message advises to
    change `setting`. The lock is a record lock on a file, so workers do not inherit it and it works over network file
    systems; but a process must not take it twice, since releasing one lock releases both. No lock is taken where the
    file system does not support locks, or where the directory cannot be written to: a later attempt to write there
    fails with its own error.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        yield
        return
    deadline = time.monotonic() + patience
    while (descriptor := _try(directory / FILE_NAME)) is None:
        if time.monotonic() > deadline:
            raise StorageError(
                f"{directory} is being written by another run ({_holder(directory / FILE_NAME)}); wait until it has "
                f"ended, end it, or set {setting} to another folder"
            )
        time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                (directory / FILE_NAME).unlink()
            os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on the file `path` while the block runs; another process that asks for it waits until the block ends.

    A leftover lock file blocks nobody. `on_wait` is called once if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not try_lock(descriptor):
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; return False at once if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try(path: Path) -> int | None:
    """Return a descriptor that holds the lock, None if another process does, -1 where files cannot be locked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        _log.warning("%s cannot be opened, so nothing keeps a second run from writing there: %s", path, error)
        return -1
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # deleted, or replaced by the file of a run that began meanwhile
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                _introduce(descriptor)
                return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno in _HELD:
            return None
        _log.info("%s cannot be locked (%s), so nothing keeps a second run from writing there", path, error)
        return -1
    os.close(descriptor)
    return None


def _introduce(descriptor: int) -> None:
    """Write a line that identifies the holder, for a process that finds the lock taken."""
    with contextlib.suppress(OSError):  # on a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:200].strip() or "unknown"
    except OSError:
        return "unknown"
