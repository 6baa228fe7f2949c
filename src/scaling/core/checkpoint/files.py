"""Data files: boxes of tensors, hashed while they are written, and read back slice by slice in bounded memory."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from typing_extensions import Self

from scaling.core.boxes import Box, whole
from scaling.core.checkpoint.disk import CHUNK_BYTES, open_regular
from scaling.core.checkpoint.header import ITEM_BYTES, Header, Slot, encode_header, read_header
from scaling.core.checkpoint.manifest import FileEntry, Part
from scaling.core.errors import CheckpointError
from scaling.core.storage.writing import write_fully

TORCH_TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "U16": torch.uint16,
        "I16": torch.int16,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "F32": torch.float32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F64": torch.float64,
        "C64": torch.complex64,
    }
)
"""The torch type for each type name of the format."""

TYPE_NAMES: Final[Mapping[torch.dtype, str]] = MappingProxyType({value: key for key, value in TORCH_TYPES.items()})
"""The format's name for each torch type."""

HASHERS: Final = 4
"""Threads that hash a file's pieces: one core hashes more slowly than a good disk writes."""

AHEAD_BYTES: Final = 256 * 2**20
"""How many bytes may be written but not yet hashed."""

SPAN_BYTES: Final = 64 * 2**10
"""Rows up to this size are read whole even if only some columns are wanted: one read beats many small ones."""


@dataclass(frozen=True)
class Piece:
    """One box of a global tensor to be written; `load` returns its values, on any device."""

    tensor: str
    shape: tuple[int, ...]
    """The global shape."""
    box: Box
    dtype: str
    load: Callable[[], Tensor]

    @property
    def key(self) -> str:
        """Return the name inside the file: that of the tensor, followed by the slices where this is only a part."""
        return self.tensor if self.box == whole(self.shape) else f"{self.tensor}{self.box}"

    @property
    def bytes(self) -> int:
        """Return the size of the data."""
        return self.box.size * ITEM_BYTES[self.dtype]


def constant(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a `load` function for a piece that is in memory already."""
    return lambda: tensor


def write_file(path: Path, pieces: Sequence[Piece], *, before: Callable[[Piece], None]) -> tuple[FileEntry, list[str]]:
    """Write `pieces` in this order to a new safetensors file, force it to disk, and return its entry and their digests.

    Calls `before` ahead of each piece. Other threads hash the data that this one writes. Pieces that are not in host
    memory yet need at most `AHEAD_BYTES` of it, or the size of the largest piece if that is more.
    """
    header = encode_header((piece.key, piece.dtype, piece.box.shape) for piece in pieces)
    digests: list[Future[str]] = []
    ahead: deque[tuple[int, Future[str]]] = deque()
    bytes_ahead = 0
    with path.open("xb", buffering=0) as file, ThreadPoolExecutor(HASHERS, thread_name_prefix="hash") as hashing:
        write_fully(file.fileno(), memoryview(header))
        for piece in pieces:
            before(piece)
            while ahead and bytes_ahead + piece.bytes > AHEAD_BYTES:
                size, digest = ahead.popleft()
                digest.result()
                bytes_ahead -= size
            data = byte_view(piece.load().detach().to("cpu"))
            digests.append(hashing.submit(_sha256, data))
            ahead.append((piece.bytes, digests[-1]))
            bytes_ahead += piece.bytes
            write_fully(file.fileno(), data)
            del data  # otherwise it would stay in memory until the next piece is loaded
        os.fsync(file.fileno())
    total = len(header) + sum(piece.bytes for piece in pieces)
    return FileEntry(total, hashlib.sha256(header).hexdigest()), [digest.result() for digest in digests]


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def byte_view(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in row-major order; without a copy where it is contiguous already."""
    flat = tensor.detach().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # a single element counts as contiguous with any stride
    return flat.view(torch.uint8).numpy().data


class Scratch(threading.local):
    """A buffer for each thread, kept between its reads: allocating and freeing large blocks would fragment the heap."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with undefined content, valid until the next call."""
        size = prod(shape) * dtype.itemsize
        if len(self._bytes) < size:
            self._bytes = torch.empty(max(size, CHUNK_BYTES), dtype=torch.uint8)
        return self._bytes[:size].view(dtype).view(shape)


class TensorFile:
    """One data file, open for reading slices. Plain reads turn a damaged disk into an error; a map would cause SIGBUS.

    Without an `entry`, nothing is known of the file beforehand. The `entry` attribute lets a later reader check that
    the file is still the same.
    """

    def __init__(self, folder: Path, name: str, entry: FileEntry | None, *, scratch: Scratch | None = None) -> None:
        self.path = folder / name
        self._scratch = Scratch() if scratch is None else scratch
        self._file = open_regular(self.path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            if entry is not None and size != entry.bytes:
                raise CheckpointError(f"{self.path} has {size} bytes, the manifest says {entry.bytes}")
            header = self._header(size, known=entry is not None)
            self.entry = FileEntry(size, hashlib.sha256(header.raw).hexdigest())
            if entry is not None and self.entry != entry:
                raise CheckpointError(f"{self.path} has another header than the manifest says")
            self.slots = header.slots
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def mapped(self) -> Tensor:
        """Return the bytes of the file, mapped into memory for as long as a view of them is kept.

        Writing to a page copies it for this process alone. The file must not become shorter while it is mapped.
        """
        return torch.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)

    def read_into(self, key: str, box: Box, into: Tensor) -> None:
        """Copy `box` of the tensor stored under `key` (in that tensor's coordinates) into a tensor of the box's shape.

        Converts to the type and device of `into`. Needs at most `CHUNK_BYTES` of memory, none where `into` is a
        contiguous CPU tensor of the stored type.
        """
        self._read_slot(self.slots[key], box, into)

    def read_part(self, part: Part, box: Box, into: Tensor) -> None:
        """Copy `box` of a part, in its own coordinates, as `read_into` does; the part may be in a pack."""
        self._read_slot(self.slot_of(part), box, into)

    def fills(self, part: Part, box: Box, into: Tensor) -> bool:
        """Return whether `read_part` reads straight into this memory; any thread may then call it."""
        slot = self.slot_of(part)
        return box.shape[1:] == slot.shape[1:] and _takes_bytes(into, TORCH_TYPES[slot.dtype])

    def slot_of(self, part: Part) -> Slot:
        """Return the slot that holds the values of a part."""
        slot = self.slots[part.key]
        if part.start is None:
            return slot
        start = slot.start + part.start * ITEM_BYTES[slot.dtype]
        stop = start + part.box.size * ITEM_BYTES[slot.dtype]
        if stop > slot.stop:
            raise CheckpointError(f"{self.path} has {part.key} of {list(slot.shape)}, too short for what is said of it")
        return Slot(slot.dtype, part.box.shape, start, stop)

    def _read_slot(self, slot: Slot, box: Box, into: Tensor) -> None:
        into = into.detach()
        if not box.shape:
            slot, box, into = Slot(slot.dtype, (1,), slot.start, slot.stop), Box((0,), (1,)), into.reshape(1)
        self._read(slot.start, slot.shape, box, into, TORCH_TYPES[slot.dtype])

    def _read(self, start: int, shape: tuple[int, ...], box: Box, into: Tensor, dtype: torch.dtype) -> None:
        item = dtype.itemsize
        row = prod(shape[1:]) * item
        start += box.offset[0] * row
        if box.shape[1:] == shape[1:]:
            self._read_rows(start, shape[1:], into, dtype)
        elif row <= SPAN_BYTES:
            columns = (slice(None), *box.slices(whole(shape))[1:])
            self._read_through_buffer(start, shape[1:], columns, into, dtype)
        else:
            inner = Box(box.offset[1:], box.shape[1:])
            for index in range(box.shape[0]):
                self._read(start + index * row, shape[1:], inner, into[index], dtype)

    def _read_rows(self, start: int, row_shape: tuple[int, ...], into: Tensor, dtype: torch.dtype) -> None:
        """Read consecutive whole rows."""
        if _takes_bytes(into, dtype):
            self._fill(start, into)
            return
        row = prod(row_shape) * dtype.itemsize
        if row > CHUNK_BYTES and row_shape:
            for index in range(into.shape[0]):
                self._read_rows(start + index * row, row_shape[1:], into[index], dtype)
            return
        self._read_through_buffer(start, row_shape, (slice(None),), into, dtype)

    def _read_through_buffer(
        self, start: int, row_shape: tuple[int, ...], columns: tuple[slice, ...], into: Tensor, dtype: torch.dtype
    ) -> None:
        """Read consecutive whole rows, a chunk at a time, and keep these columns of them."""
        row = prod(row_shape) * dtype.itemsize
        count = min(into.shape[0], max(1, CHUNK_BYTES // row))
        buffer = self._scratch.take((count, *row_shape), dtype)
        for first in range(0, into.shape[0], count):
            rows = into[first : first + count]
            self._fill(start + first * row, buffer[: len(rows)])
            rows.copy_(buffer[: len(rows)][columns])

    def _fill(self, start: int, tensor: Tensor) -> None:
        view = byte_view(tensor)
        while len(view):
            count = os.preadv(self._file.fileno(), [view], start)
            if not count:
                raise CheckpointError(f"{self.path} ends before byte {start + len(view)}")
            start += count
            view = view[count:]

    def _header(self, size: int, *, known: bool) -> Header:
        try:
            return read_header(self._file, size)
        except CheckpointError as error:
            if not known:
                raise
            raise CheckpointError(f"{self.path} has another header than the manifest says: {error}") from error


def _takes_bytes(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Return whether stored bytes of this type can be read into a tensor's memory as they are."""
    return tensor.is_contiguous() and tensor.device.type == "cpu" and tensor.dtype == dtype
