"""Read a memory map's files with seek and read, and with retries: for network file systems where mapping fails.

A process that touches a page of a mapped file which the server cannot deliver is killed (SIGBUS). A read fails with an
error instead, so it can be repeated.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from scaling.core.data.documents import Elements, Integers, damaged, file_size, unreadable
from scaling.core.data.memory_map import MemoryMapDocuments
from scaling.core.data.open_files import make_room
from scaling.core.errors import StorageError

RETRY_DELAYS: Final = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds to wait before each further attempt to read."""

_TRANSIENT: Final = frozenset({errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN})


@final
class FileElements(Elements):
    """The integers in a file, fetched by reading. Failed and empty reads are repeated on a newly opened handle."""

    def __init__(self, path: Path, dtype: np.dtype[Any], *, retry_delays: Sequence[float]) -> None:
        self._descriptor: int | None = None
        self._size = file_size(path)
        super().__init__(path, dtype, self._size // dtype.itemsize)
        self._retry_delays = retry_delays

    def read(self, start: int, count: int) -> Integers:
        """Return a new array."""
        wanted = count * self.dtype.itemsize
        content = bytearray()
        while len(content) < wanted:
            content += self._read_patiently(start * self.dtype.itemsize + len(content), wanted - len(content))
        return np.frombuffer(bytes(content), dtype=self.dtype)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read_patiently(self, offset: int, size: int) -> bytes:
        problem: OSError | str = ""
        for delay in (0.0, *self._retry_delays):
            time.sleep(delay)
            try:
                if content := os.pread(self._opened(), size, offset):
                    return content
                problem = "the read came back empty"
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise unreadable(self.path, error, f" at byte {offset}") from error
                problem = error
            self.close()
        raise StorageError(
            f"{self.path} cannot be read at byte {offset}, after {len(self._retry_delays) + 1} attempts: {problem}; "
            "check the file system"
        )

    def _opened(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            make_room(self._descriptor)
            if (size := os.fstat(self._descriptor).st_size) != self._size:
                raise damaged(self.path, f"it had {self._size} bytes when it was opened first and now has {size}")
        return self._descriptor

    def __del__(self) -> None:
        self.close()


@final
class FileDataset(MemoryMapDocuments):
    """The documents of a memory map, fetched by reading; a document is a copy."""

    def __init__(
        self,
        prefix: Path | str,
        load_index_to_memory: bool = False,
        *,
        retry_delays: Sequence[float] = RETRY_DELAYS,
    ) -> None:
        self._load_index_to_memory = load_index_to_memory
        self._retry_delays = tuple(retry_delays)
        super().__init__(
            Path(prefix),
            partial(FileElements, retry_delays=self._retry_delays),
            load_index_to_memory=load_index_to_memory,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the files again in the other process."""
        again = partial(type(self), retry_delays=self._retry_delays)
        return again, (self.prefix, self._load_index_to_memory)
