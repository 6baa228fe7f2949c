"""How a parameter lies on the axes of a layout, and what follows for any rank: who stands for it, who sums. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scaling.core.topology.layout import Axis, Coordinate, Layout


@dataclass(frozen=True)
class Placement:
    """Which ranks along one axis hold the same values of a parameter, and what each of them knows of its gradient.

    The same values are held by `copies` neighbouring ranks (None: by all of the axis), or by the ranks at `indices`.
    With `gradient_in_parts` each of them computes a part of the gradient, and the parts are summed; otherwise each
    computes the whole.
    """

    copies: int | None = None
    indices: tuple[int, ...] | None = None
    gradient_in_parts: bool = False

    def holders(self, index: int, size: int) -> Sequence[int]:
        """Return the positions on an axis of `size` ranks that hold what the rank at `index` holds, in order."""
        if self.indices is not None:
            return self.indices
        copies = self.copies or size
        first = index // copies * copies
        return range(first, first + copies)


CUT: Final = Placement(copies=1)
"""Each rank of the axis holds values of its own."""
SAME: Final = Placement()
"""Every rank holds the same values and computes the same gradient."""
SAME_IN_PARTS: Final = Placement(gradient_in_parts=True)
"""Every rank holds the same values and computes a part of the gradient."""


def tied(indices: Iterable[int]) -> Placement:
    """Return the placement of a parameter that the ranks at `indices` share, and use each in its own way."""
    return Placement(indices=tuple(sorted(indices)), gradient_in_parts=True)


def _usual(axis: Axis) -> Placement:
    if axis is Axis.PIPE:
        return CUT  # every stage has layers of its own
    return SAME_IN_PARTS if axis.splits_batch else SAME


@dataclass(frozen=True)
class Placements:
    """How a parameter lies along every axis."""

    along: tuple[Placement, ...]

    def on(self, axis: Axis) -> Placement:
        """Return how the parameter lies along `axis`."""
        return self.along[_NUMBER[axis]]

    def having(self, axis: Axis, placement: Placement) -> Placements:
        """Return the placements with another one along `axis`."""
        number = _NUMBER[axis]
        return replace(self, along=(*self.along[:number], placement, *self.along[number + 1 :]))

    def cut(self, axes: Iterable[Axis]) -> Placements:
        """Return the placements of something that each rank along `axes` holds another slice of."""
        found = self
        for axis in axes:
            found = found.having(axis, CUT)
        return found

    def within(self, layout: Layout) -> Placements:
        """Return the placements in their shortest form: alike where they mean the same in `layout`."""
        found = self
        for axis in Axis:
            size, placement = layout.size(axis), self.on(axis)
            if size == 1 or len(placement.holders(0, size)) == 1:
                found = found.having(axis, CUT)
            elif placement.copies == size:
                found = found.having(axis, replace(placement, copies=None))
        return found

    def stands_for(self, layout: Layout, at: Coordinate, *, spread: int = 0) -> bool:
        """Return whether the rank at `at` is the one, among all that hold its values, that counts or writes them.

        It is the first of them, or with `spread` (any number) another one, so that the work can be dealt out.
        """
        for axis in Axis:
            holders = self.on(axis).holders(at.index(axis), layout.size(axis))
            spread, chosen = divmod(spread, len(holders))
            if at.index(axis) != holders[chosen]:
                return False
        return True

    def batch_axes(self, layout: Layout) -> tuple[Axis, ...]:
        """Return the axes that split the batch and along which the gradient is summed: one joint sum."""
        return tuple(
            axis for axis in Axis if axis.splits_batch and layout.size(axis) > 1 and self.on(axis) == SAME_IN_PARTS
        )

    def cut_axes(self, layout: Layout) -> tuple[Axis, ...]:
        """Return the axes whose ranks hold different parts of the same tensors: not the pipe's, with other layers."""
        return tuple(
            axis
            for axis in Axis
            if axis is not Axis.PIPE and len(self.on(axis).holders(0, layout.size(axis))) < layout.size(axis)
        )

    def other_sums(self, layout: Layout) -> tuple[tuple[Axis, Placement], ...]:
        """Return along which further axes the gradient is summed, and over which of their ranks."""
        done = self.batch_axes(layout)
        return tuple(
            (axis, self.on(axis))
            for axis in Axis
            if axis not in done
            and self.on(axis).gradient_in_parts
            and len(self.on(axis).holders(0, layout.size(axis))) > 1
        )


USUAL: Final = Placements(tuple(map(_usual, Axis)))
"""Whole on every rank of its pipeline stage: what a parameter is unless its layer says otherwise."""

_NUMBER: Final = {axis: number for number, axis in enumerate(Axis)}
