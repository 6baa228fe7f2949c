"""Read token documents from Megatron's indexed data sets: `<prefix>.bin` with the tokens, `<prefix>.idx` with the rest.

The index begins with a header: the nine bytes `MMIDIDX\\0\\0`, the version (u64), a code for the type of a token (u8),
the number of sequences (u64) and of document borders (u64), all little-endian. Three arrays follow: the size of every
sequence (i32), its first byte in the `.bin` (i64), and the borders (i64): document d is made of the sequences from
border d to border d + 1, most often exactly one. Sequences follow each other without gaps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.documents import (
    BLOCK_SIZE,
    ArrayElements,
    Elements,
    Integers,
    TokenDocuments,
    damaged,
    extremes,
    file_size,
    unreadable,
    with_suffix,
)
from scaling.core.data.span_index import SpanIndex
from scaling.core.errors import DataError

MAGIC: Final = b"MMIDIDX\x00\x00"
VERSION: Final = 1
HEADER: Final = struct.Struct("<9sQBQQ")
TOKEN_DTYPES: Final[Mapping[int, str]] = MappingProxyType({1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"})
"""Codes 6 and 7 are floating-point types, which tokens never have."""


@final
class MegatronDataset(TokenDocuments):
    """The memory-mapped documents of a Megatron data set. Some may be empty, or joined from several sequences."""

    def __init__(self, prefix: Path | str, load_index_to_memory: bool = False) -> None:
        prefix = Path(prefix)
        self._load_index_to_memory = load_index_to_memory
        path = with_suffix(prefix, ".idx")
        dtype, sequences, borders = _read_header(path)
        expected = HEADER.size + sequences * (4 + 8) + borders * 8
        actual = file_size(path)
        if actual == expected + sequences:
            raise DataError(
                f"{path} is the index of a multimodal data set, with a mode for each of its {sequences} sequences, "
                "which cannot be read; write its text as a data set of its own, without modes"
            )
        if actual != expected:
            raise damaged(
                path,
                f"it has {actual} bytes, and {sequences} sequences with {borders} document borders take {expected}",
            )
        self._sizes = self._array(path, "<i4", HEADER.size, sequences)
        self._pointers = self._array(path, "<i8", HEADER.size + 4 * sequences, sequences)
        self._borders = self._array(path, "<i8", HEADER.size + 12 * sequences, borders)
        tokens = ArrayElements.mapped(with_suffix(prefix, ".bin"), dtype)
        super().__init__(prefix, tokens, borders - 1, max_token=None)
        self._is_checked = False
        self._one_sequence_each = False
        self._sequences = SpanIndex(path, count=sequences, total=file_size(tokens.path), read=self._entries)
        self._sequences.check_at_opening()
        ends = [int(border) for border in (*self._borders.read(0, 1), *self._borders.read(borders - 1, 1))]
        if ends != [0, sequences]:
            raise damaged(path, f"its documents go from sequence {ends[0]} to {ends[1]}, not from 0 to {sequences}")

    def sizes(self, start: int = 0, stop: int | None = None) -> Integers:
        """Return the number of tokens of documents `start` to `stop`; the first call checks the whole index."""
        self._check_index()
        start, stop, _ = slice(start, stop).indices(self.document_count)
        if stop <= start:
            return np.empty(0, self._sizes.dtype)
        if self._one_sequence_each:
            return self._sizes.read(start, stop - start)
        borders = self._borders.read(start, stop - start + 1)
        first, last = int(borders[0]), int(borders[-1])
        before = np.concatenate([[0], np.cumsum(self._sizes.read(first, last - first), dtype=np.int64)])
        return np.diff(before[borders - first])

    def verify(self) -> None:
        """Check that the index is consistent and no token is negative; the format has no digests."""
        self._check_index()
        smallest, _ = extremes(self._tokens.blocks())
        if smallest < 0:
            raise damaged(self._tokens.path, f"it holds token {smallest}, and token ids are not negative")

    def __reduce__(self) -> tuple[type[MegatronDataset], tuple[Path, bool]]:
        """Open the files again in the other process instead of sending their contents."""
        return type(self), (self.prefix, self._load_index_to_memory)

    def _array(self, path: Path, dtype: str, offset: int, count: int) -> Elements:
        elements = ArrayElements.mapped(path, np.dtype(dtype), offset=offset, count=count)
        return elements.in_memory() if self._load_index_to_memory else elements

    def _entries(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where sequences begin and how long they are, in bytes."""
        sizes = self._sizes.read(first, stop - first).astype(np.int64) * self.dtype.itemsize
        return self._pointers.read(first, stop - first).astype(np.int64), sizes

    def _span(self, index: int) -> tuple[int, int]:
        first, stop = (int(border) for border in self._borders.read(index, 2))
        if not 0 <= first <= stop <= len(self._sizes):
            raise self._wrong_border(index)
        if first == stop:
            return 0, 0
        start, size = self._sequences.span(first)
        if stop > first + 1:
            last_start, last_size = self._sequences.span(stop - 1)
            size = last_start + last_size - start
        return start // self.dtype.itemsize, size // self.dtype.itemsize

    def _check_index(self) -> None:
        """Check the whole index, once, in blocks: an index of 10^9 documents takes gigabytes."""
        if self._is_checked:
            return
        self._sequences.check()
        one_each = True
        for first in range(0, self.document_count, BLOCK_SIZE):
            counts = np.diff(self._borders.read(first, min(BLOCK_SIZE, self.document_count - first) + 1))
            if (counts < 0).any():
                raise self._wrong_border(first + int((counts < 0).argmax()))
            one_each = one_each and bool((counts == 1).all())
        self._one_sequence_each = one_each
        self._is_checked = True

    def _wrong_border(self, document: int) -> DataError:
        return damaged(self._borders.path, f"the borders of document {document} are not in order")

    def _identity(self) -> Iterator[bytes]:
        for elements in (self._sizes, self._borders, self._tokens):
            yield from (piece.tobytes() for piece in elements.spots())


def beginning(path: Path) -> bytes:
    """Return the first bytes of an existing file, where the index of a Megatron data set has `MAGIC`."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as error:
        raise unreadable(path, error) from error


def _read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    """Return the type of the tokens and the numbers of sequences and of document borders."""
    if file_size(path) < HEADER.size:
        raise damaged(path, "it is shorter than its header")
    try:
        with path.open("rb") as file:
            magic, version, code, sequences, borders = HEADER.unpack(file.read(HEADER.size))
    except OSError as error:
        raise unreadable(path, error) from error
    if magic != MAGIC:
        raise DataError(
            f"{path} begins with {magic!r}, not with {MAGIC!r}, so it is not the index of a Megatron data set; "
            "open a memory map as what it is, and tokenize again what is in another format"
        )
    if version != VERSION:
        raise DataError(f"{path} has version {version}, and only version {VERSION} can be read; write it again")
    if code not in TOKEN_DTYPES:
        raise damaged(path, f"{code} does not stand for an integer type ({sorted(TOKEN_DTYPES)} do)")
    if sequences == 0 or borders < 2:
        raise damaged(path, f"it has {sequences} sequences and {borders} document borders, so no documents")
    return np.dtype(TOKEN_DTYPES[code]), sequences, borders
