"""Read files of unknown origin: truncation is noticed, links are not followed, and sizes are limited."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scaling.core.errors import CheckpointError

CHUNK_BYTES: Final = 8 * 2**20
"""How many bytes are written, read and hashed at a time."""


def open_regular(path: Path) -> io.FileIO:
    """Open a file for unbuffered reading; a symbolic link or anything but a regular file is a `CheckpointError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reasons = {errno.ENOENT: "is missing", errno.ENOTDIR: "is missing", errno.ELOOP: "is a symbolic link"}
        if error.errno in reasons:
            raise CheckpointError(f"{path} {reasons[error.errno]}") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file")
    return io.FileIO(descriptor)


def read_small(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(f"{path} has {size} bytes; at most {limit} are accepted")
        return file.read(limit)


def iterate_chunks(file: io.FileIO, start: int, stop: int, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes start..stop of a file, read into `buffer`; each view is only valid until the next one.

    The file's position does not change: several threads may read the file, each into its own buffer.
    """
    while start < stop:
        count = os.preadv(file.fileno(), [buffer[: min(len(buffer), stop - start)]], start)
        if not count:
            raise CheckpointError(f"{file.name} ends before byte {stop}")
        start += count
        yield buffer[:count]
