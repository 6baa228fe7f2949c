"""Boxes: axis-aligned parts of a named global tensor, and the arithmetic between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from scaling.core.errors import LayoutError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, order=True)
class Box:
    """A part of a global tensor: where it starts and how large it is, one number per dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def stop(self) -> tuple[int, ...]:
        """Return where the box ends (exclusive), one number per dimension."""
        return tuple(start + length for start, length in zip(self.offset, self.shape, strict=True))

    def intersect(self, other: Box) -> Box | None:
        """Return the common part of two boxes of the same tensor, None where they do not overlap."""
        start = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, tuple(b - a for a, b in zip(start, stop, strict=True)))

    def lies_in(self, shape: Sequence[int]) -> bool:
        """Return whether the box lies entirely in a tensor of this shape."""
        return len(self.shape) == len(shape) and all(
            start >= 0 and start + length <= size
            for start, length, size in zip(self.offset, self.shape, shape, strict=True)
        )

    def slices(self, within: Box) -> tuple[slice, ...]:
        """Return the index of this box inside a tensor that holds `within`."""
        return tuple(slice(a - b, a - b + n) for a, n, b in zip(self.offset, self.shape, within.offset, strict=True))

    def inside(self, within: Box) -> Box:
        """Return this box in the coordinates of a tensor that holds `within`."""
        return Box(tuple(a - b for a, b in zip(self.offset, within.offset, strict=True)), self.shape)

    def within(self, place: Box) -> Box:
        """Return this box, given in the coordinates of a tensor that holds `place`, in those of the whole tensor."""
        return Box(tuple(a + b for a, b in zip(self.offset, place.offset, strict=True)), self.shape)

    def subtract(self, hole: Box) -> Iterator[Box]:
        """Cut out `hole`: yield disjoint boxes that cover the rest, at most two per dimension."""
        common = self.intersect(hole)
        if common is None:
            yield self
            return
        offset, shape = list(self.offset), list(self.shape)
        for dim in range(len(shape)):
            before = common.offset[dim] - offset[dim]
            after = shape[dim] - before - common.shape[dim]
            if before:
                yield Box(tuple(offset), (*shape[:dim], before, *shape[dim + 1 :]))
            if after:
                start = (*offset[:dim], common.stop[dim], *offset[dim + 1 :])
                yield Box(start, (*shape[:dim], after, *shape[dim + 1 :]))
            offset[dim], shape[dim] = common.offset[dim], common.shape[dim]

    def cut(self, elements: int) -> Iterator[Box]:
        """Cut into boxes of at most `elements` elements (at least 1): contiguous in this box, in row-major order."""
        if self.size <= elements:
            yield self
            return
        dim = next(index for index, length in enumerate(self.shape) if length > 1)
        step = max(1, elements // prod(self.shape[dim + 1 :]))
        for start in range(0, self.shape[dim], step):
            length = min(step, self.shape[dim] - start)
            offset = (*self.offset[:dim], self.offset[dim] + start, *self.offset[dim + 1 :])
            yield from Box(offset, (*self.shape[:dim], length, *self.shape[dim + 1 :])).cut(elements)

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.offset, self.stop, strict=True)) + "]"


def whole(shape: Sequence[int]) -> Box:
    """Return the box that covers the whole tensor."""
    return Box((0,) * len(shape), tuple(shape))


def boxes_of_flat_range(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[Box, int]]:
    """Cut the elements start..stop of a row-major tensor into boxes.

    Yields (box, position of its first element in the flat order), in flat order; at most 2 * dimensions - 1 boxes.
    The elements of each box are contiguous in the flat order. A range beyond the tensor is a `LayoutError`.
    """
    if start >= stop:
        return
    if start < 0 or stop > prod(shape):
        raise LayoutError(f"elements {start} to {stop} are not within a tensor of shape {list(shape)}")
    if len(shape) == 0:
        yield Box((), ()), 0
        return
    if len(shape) == 1:
        yield Box((start,), (stop - start,)), start
        return
    inner = prod(shape[1:])
    first, last = start // inner, (stop - 1) // inner
    if start == first * inner and stop == (last + 1) * inner:
        yield Box((first, *(0,) * (len(shape) - 1)), (last + 1 - first, *shape[1:])), start
    elif first == last:
        for box, position in boxes_of_flat_range(shape[1:], start - first * inner, stop - first * inner):
            yield Box((first, *box.offset), (1, *box.shape)), position + first * inner
    else:
        head, tail = -(-start // inner) * inner, stop // inner * inner
        yield from boxes_of_flat_range(shape, start, head)
        yield from boxes_of_flat_range(shape, head, tail)
        yield from boxes_of_flat_range(shape, tail, stop)


def follow_each_other(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Return whether the boxes, which lie in the shape, cut its row-major order into consecutive ranges.

    If so, they cover the shape exactly. If not, they may still cover it, for example when cut along columns. This is
    the quick check for whole tensors, rows and shards of flat buffers; it takes a tenth of the time of a search for
    overlaps.
    """
    steps = [1] * len(shape)
    for dim in reversed(range(len(shape) - 1)):
        steps[dim] = steps[dim + 1] * shape[dim + 1]
    ranges = []
    for box in boxes:
        start, size = 0, 1
        for offset, length, whole_length, step in zip(box.offset, box.shape, shape, steps, strict=True):
            if size > 1 and length != whole_length:
                return False
            start += offset * step
            size *= length
        ranges.append((start, size))
    position = 0
    for start, size in sorted(ranges):
        if start != position:
            return False
        position += size
    return position == prod(shape)


def first_overlap(boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Return the indices of two boxes that share an element; None where all boxes are disjoint.

    Sweeps along the dimension with the most distinct offsets: near-linear for the usual cuts into slices.
    """
    if not boxes or not boxes[0].shape:
        return (0, 1) if len(boxes) > 1 else None
    sweep = max(range(len(boxes[0].shape)), key=lambda dim: len({box.offset[dim] for box in boxes}))
    open_boxes: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda index: boxes[index].offset[sweep]):
        box = boxes[index]
        open_boxes = [other for other in open_boxes if boxes[other].stop[sweep] > box.offset[sweep]]
        for other in open_boxes:
            if box.intersect(boxes[other]) is not None:
                return min(index, other), max(index, other)
        open_boxes.append(index)
    return None


def uncovered(target: Box, boxes: Sequence[Box]) -> list[Box]:
    """Return disjoint boxes with the elements of `target` that lie in none of `boxes`."""
    rest = [target] if target.size else []
    for box in boxes:
        if not rest:
            break
        if box.size:
            rest = [piece for remaining in rest for piece in remaining.subtract(box)]
    return rest


@dataclass(frozen=True)
class Former:
    """The place of a tensor's rows in an older checkpoint format: in blocks, among the rows of another tensor.

    Block b, of `block` rows, begins at row `b * stride + offset` of the other tensor.
    """

    shape: tuple[int, ...]
    """Shape of the other tensor."""
    block: int
    stride: int
    offset: int
    key: str = ""
    """Name of the other tensor."""

    def pieces(self, box: Box) -> Iterator[tuple[Box, Box]]:
        """Cut a box of the tensor at its blocks: yield (box of the tensor, the same rows in the other tensor)."""
        row = box.offset[0]
        while row < box.stop[0]:
            number, within = divmod(row, self.block)
            length = min(self.block - within, box.stop[0] - row)
            shape = (length, *box.shape[1:])
            there = (number * self.stride + self.offset + within, *box.offset[1:])
            yield Box((row, *box.offset[1:]), shape), Box(there, shape)
            row += length


@dataclass
class GlobalTensor:
    """The parts of a named global tensor that this process holds: views into memory; loading writes through them.

    `owned` is False where another rank holds the same parts and writes them; such a tensor is loaded but not saved.
    A tensor may have no part on this process. `former` says where older checkpoints store the tensor.
    """

    key: str
    shape: tuple[int, ...]
    parts: list[tuple[Box, Tensor]] = field(default_factory=list)
    owned: bool = True
    former: Former | None = None
