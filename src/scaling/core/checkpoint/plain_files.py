"""Safetensors files of other programs: opened without trust, written tensor by tensor, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from scaling.core.checkpoint.files import TYPE_NAMES, Scratch, TensorFile, byte_view
from scaling.core.checkpoint.header import encode_header
from scaling.core.checkpoint.manifest import FileEntry
from scaling.core.errors import CheckpointError
from scaling.core.storage.writing import write_fully


@dataclass(frozen=True)
class PlainTensor:
    """A tensor to be written; the functions in `pieces` return its values one after another, in row-major order."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Callable[[], Tensor]]

    @property
    def bytes(self) -> int:
        """Return the size of the data."""
        return prod(self.shape) * self.dtype.itemsize


def open_plain(path: Path, *, known: FileEntry | None = None, scratch: Scratch | None = None) -> TensorFile:
    """Open a safetensors file whose header fits it exactly; links are followed, to a regular file.

    With `known`, the entry of an earlier reading, the file must still be the same.

    Raises:
        CheckpointError: The file is missing, cut off, changed or not a safetensors file.
    """
    try:
        real = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise CheckpointError(f"{path} is missing") from error
    try:
        return TensorFile(real.parent, real.name, known, scratch=scratch)
    except CheckpointError as error:
        text = str(error)
        if text.startswith(str(real)):
            changed = "; it was changed while it was read" if known is not None else ""
            raise CheckpointError(text + changed) from error
        raise CheckpointError(f"{path} is damaged or cut off: {text}; copy it again from where it came") from error


def write_plain(path: Path, tensors: Sequence[PlainTensor]) -> None:
    """Write a new safetensors file and force it to the disk; one piece is in memory at a time.

    Raises:
        OSError: The file cannot be written; the part that was written is left there.
    """
    with path.open("xb", buffering=0) as file:
        header = encode_header((tensor.key, TYPE_NAMES[tensor.dtype], tensor.shape) for tensor in tensors)
        write_fully(file.fileno(), memoryview(header))
        for tensor in tensors:
            written = 0
            for load in tensor.pieces:
                piece = load()
                assert piece.dtype == tensor.dtype
                write_fully(file.fileno(), byte_view(piece))
                written += piece.nbytes
                del piece  # otherwise it would stay in memory until the next one is loaded
            assert written == tensor.bytes
        os.fsync(file.fileno())
