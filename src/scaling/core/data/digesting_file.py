"""Files of numbers that are being written, each with the digest of its bytes so far."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

_WRITE_BUFFER: Final = 4 << 20


@final
class DigestingFile:
    """A file being written, and the digest of its bytes so far."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=_WRITE_BUFFER)
        self._digest = hashlib.sha256()

    def write(self, array: NDArray[Any]) -> None:
        """Append the bytes of a contiguous array."""
        data = array.view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)

    def close(self) -> str:
        """Force the file to disk, close it, and return its digest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close the file, whatever is in it."""
        with suppress(OSError):  # buffered data may not fit on the disk
            self._file.close()


@final
class WeightFile:
    """Weights being written: one byte each as long as all are 0 or 1, float32 from the first other value on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dtype: np.dtype[Any] = np.dtype("u1")
        self._file = DigestingFile(path)

    def write(self, weights: NDArray[np.float32]) -> None:
        """Append weights."""
        if self.dtype.kind == "u" and not ((weights == 0) | (weights == 1)).all():
            self._widen()
        self._file.write(np.ascontiguousarray(weights, self.dtype))

    def close(self) -> str:
        """Force the file to disk, close it, and return its digest."""
        return self._file.close()

    def abandon(self) -> None:
        """Close the file, whatever is in it."""
        self._file.abandon()

    def _widen(self) -> None:
        """Rewrite the weights so far in the larger type. The old file is unlinked, and vanishes when it is closed."""
        self._file.close()
        self.dtype = np.dtype("<f4")
        with self._path.open("rb") as bytes_before:
            self._path.unlink()
            self._file = DigestingFile(self._path)
            while block := bytes_before.read(_WRITE_BUFFER):
                self._file.write(np.frombuffer(block, np.uint8).astype(self.dtype))
