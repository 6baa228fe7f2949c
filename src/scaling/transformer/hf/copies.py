"""The mapping between boxes of our tensors and of theirs, and the pieces in which a tensor is moved: pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from scaling.core import Box, whole
from scaling.transformer.hf.tensors import Rows, Source, TensorMap

PIECE_BYTES: Final = 64 * 2**20
"""Bytes of a tensor that are moved at a time."""


class Copy(NamedTuple):
    """A box of one of our tensors, and the box of theirs with the same values (as in their file)."""

    key: str
    ours: Box
    theirs: Box


def pieces_of_ours(theirs: TensorMap, source: Source, elements: int) -> Iterator[Box]:
    """Cut one of our tensors into boxes of at most `elements` elements that are contiguous in their file.

    Where their tensor is transposed, the boxes are columns of ours, so that rows of theirs are read in order.
    """
    if not theirs.transposed:
        yield from whole(source.shape).cut(elements)
        return
    for box in whole(source.shape[::-1]).cut(elements):
        yield _turned(box)


def pieces_of_theirs(theirs: TensorMap, elements: int) -> Iterator[Box]:
    """Cut one of their tensors into boxes of at most `elements` elements, in the order of their file."""
    yield from whole(theirs.shape).cut(elements)


def copies_from(theirs: TensorMap, source: Source, box: Box) -> Iterator[Copy]:
    """Yield the places of a box of one of our tensors in theirs; together they cover the box."""
    if source.rows is None:
        yield Copy(source.key, box, _turned(box) if theirs.transposed else box)
        return
    rows, row = source.rows, box.offset[0]
    while row < box.stop[0]:
        number, within = divmod(row, rows.block)
        length = min(rows.block - within, box.stop[0] - row)
        there = rows.offset + number * rows.stride + within
        yield _copy(theirs, source, box, ours=row, there=there, length=length)
        row += length


def copies_into(theirs: TensorMap, box: Box) -> Iterator[Copy]:
    """Yield the boxes of our tensors that make up a box of theirs."""
    seen = _turned(box) if theirs.transposed else box
    for source in theirs.sources:
        if source.rows is None:
            yield Copy(source.key, seen, box)
            continue
        rows = source.rows
        for number in _blocks_between(rows, source.shape[0], seen.offset[0], seen.stop[0]):
            begin = rows.offset + number * rows.stride
            start, stop = max(begin, seen.offset[0]), min(begin + rows.block, seen.stop[0])
            if start < stop:
                ours = number * rows.block + start - begin
                yield _copy(theirs, source, seen, ours=ours, there=start, length=stop - start)


def _blocks_between(rows: Rows, count: int, start: int, stop: int) -> range:
    """Return the numbers of the blocks that can have rows in the range start..stop of theirs."""
    first = max(0, (start - rows.offset) // rows.stride)
    last = max(0, -(-(stop - rows.offset) // rows.stride))
    return range(first, min(last, count // rows.block))


def _copy(theirs: TensorMap, source: Source, box: Box, *, ours: int, there: int, length: int) -> Copy:
    """Return a copy of `length` rows, in the columns of the box."""
    shape = (length, *box.shape[1:])
    found = Box((there, *box.offset[1:]), shape)
    return Copy(source.key, Box((ours, *box.offset[1:]), shape), _turned(found) if theirs.transposed else found)


def _turned(box: Box) -> Box:
    return Box(box.offset[::-1], box.shape[::-1])
