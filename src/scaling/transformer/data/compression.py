"""Open plain, gzip and Zstandard files the same way, for reading bytes; a truncated stream never passes as complete."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from scaling.core import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
"""The exceptions of reading compressed data that is damaged or ends too early."""

COMPRESSED_BYTES_AT_ONCE = 1 << 10
"""Few, as the decompressed data is held in memory: 32 MB where every block of 4 bytes encodes 128 KiB of one byte."""

READ_BYTES = 1 << 18
"""Bytes read at once from a plain file: lines are longer than Python's own buffer and would take many system calls."""


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, through gzip or Zstandard where its name ends in .gz or .zst.

    Raises:
        DataError: The package for Zstandard is not installed.
        OSError: The file cannot be opened.
    """
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        case ".zst":
            try:
                import zstandard
            except ImportError as error:
                raise DataError(
                    f"{path}: reading .zst files takes the package zstandard; run `pip install zstandard`."
                ) from error
            return cast("IO[bytes]", io.BufferedReader(_ZstandardStream(path, zstandard)))
        case _:
            return path.open("rb", buffering=READ_BYTES)


class _ZstandardStream(io.RawIOBase):
    """Stream that decompresses frame after frame; zstandard's own reader takes a truncated file for a complete one."""

    def __init__(self, path: Path, zstandard: Any) -> None:
        self._file = path.open("rb")
        self._zstandard = zstandard
        self._frame: Any = None
        self._pending = memoryview(b"")  # consumed by moving its start: copying the rest each time would be quadratic

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while len(self._pending) == 0:
            compressed = self._file.read(COMPRESSED_BYTES_AT_ONCE)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("Zstandard data ends before its end marker")
                return 0
            self._pending = memoryview(self._decompress(compressed))
        size = min(len(view), len(self._pending))
        view[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def _decompress(self, compressed: bytes) -> bytes:
        result = b""
        while compressed:
            if self._frame is None:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                result += self._frame.decompress(compressed)
            except self._zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            compressed = b""
            if self._frame.eof:
                compressed, self._frame = self._frame.unused_data, None
        return result

    def close(self) -> None:
        self._file.close()
        super().close()
