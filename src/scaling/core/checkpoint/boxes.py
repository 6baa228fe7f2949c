"""Boxes: axis-aligned parts of a named global tensor, and the arithmetic between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

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

    def intersect(self, other: Box) -> Box | None:
        """Return the common part of two boxes of the same tensor, None where they do not overlap."""
        start = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        stop = tuple(
            min(a + n, b + m)
            for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, tuple(b - a for a, b in zip(start, stop, strict=True)))

    def slices(self, within: Box) -> tuple[slice, ...]:
        """Return the index of this box inside a tensor that holds `within`."""
        return tuple(
            slice(a - b, a - b + n) for a, n, b in zip(self.offset, self.shape, within.offset, strict=True)
        )


def whole(shape: Sequence[int]) -> Box:
    """Return the box that is the whole tensor."""
    return Box((0,) * len(shape), tuple(shape))


def boxes_of_flat_range(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[Box, int]]:
    """Cut the elements start..stop of a row-major tensor into boxes.

    Yields (box, position of its first element in the flat order), in flat order; at most 2 * dimensions - 1 boxes.
    The elements of each box are contiguous in the flat order.
    """
    if start >= stop:
        return
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


@dataclass
class GlobalTensor:
    """What this process holds of one named global tensor: views into memory; loading writes through them.

    `owned` is False where another rank holds the same parts and writes them; such a tensor is loaded but not saved.
    A tensor may have no part on this process.
    """

    key: str
    shape: tuple[int, ...]
    parts: list[tuple[Box, Tensor]] = field(default_factory=list)
    owned: bool = True
