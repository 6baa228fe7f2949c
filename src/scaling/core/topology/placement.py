"""Placement of a parameter on the axes of a layout: which ranks hold it, count or write it, sum its gradient. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scaling.core.topology.layout import Axis, Coordinate, Layout


@dataclass(frozen=True)
class Placement:
    """The ranks along one axis that hold the same values of a parameter, and whether each computes its whole gradient.

    The same values are held by `copies` neighbouring ranks (None: by all ranks of the axis), or by the ranks at
    `indices`. With `gradient_in_parts` each of these ranks computes a part of the gradient, and the parts are summed;
    otherwise each computes the whole gradient.
    """

    copies: int | None = None
    indices: tuple[int, ...] | None = None
    gradient_in_parts: bool = False

    def holders(self, index: int, size: int) -> Sequence[int]:
        """Return the positions on an axis of `size` ranks that share values with `index`: `indices`, if given."""
        if self.indices is not None:
            return self.indices
        copies = self.copies or size
        first = index // copies * copies
        return range(first, first + copies)


CUT: Final = Placement(copies=1)
"""Each rank of the axis holds its own values."""
SAME: Final = Placement()
"""Every rank holds the same values and computes the same gradient."""
SAME_IN_PARTS: Final = Placement(gradient_in_parts=True)
"""Every rank holds the same values and computes a part of the gradient."""


def tied(indices: Iterable[int]) -> Placement:
    """Return the placement of a parameter that the ranks at `indices` share and each use in a different way."""
    return Placement(indices=tuple(sorted(indices)), gradient_in_parts=True)


def _usual(axis: Axis) -> Placement:
    if axis is Axis.PIPE:
        return CUT  # every stage has its own layers
    return SAME_IN_PARTS if axis.splits_batch else SAME


@dataclass(frozen=True)
class Placements:
    """The placement of a parameter along every axis."""

    along: tuple[Placement, ...]

    def on(self, axis: Axis) -> Placement:
        """Return the placement of the parameter along `axis`."""
        return self.along[_NUMBER[axis]]

    def having(self, axis: Axis, placement: Placement) -> Placements:
        """Return a copy of the placements with `placement` along `axis`."""
        number = _NUMBER[axis]
        return replace(self, along=(*self.along[:number], placement, *self.along[number + 1 :]))

    def cut(self, axes: Iterable[Axis]) -> Placements:
        """Return the placements of a value of which each rank along `axes` holds a different slice."""
        found = self
        for axis in axes:
            found = found.having(axis, CUT)
        return found

    def within(self, layout: Layout) -> Placements:
        """Return the placements in normal form: equal where they mean the same in `layout`."""
        found = self
        for axis in Axis:
            size, placement = layout.size(axis), self.on(axis)
            if size == 1 or len(placement.holders(0, size)) == 1:
                found = found.having(axis, CUT)
            elif placement.copies == size:
                found = found.having(axis, replace(placement, copies=None))
        return found

    def stands_for(self, layout: Layout, at: Coordinate, *, spread: int = 0) -> bool:
        """Return whether the rank at `at` is the one, of all ranks that hold its values, that counts or writes them.

        That is the first of these ranks, or with `spread` (any number) another one, so that the work can be
        distributed.
        """
        for axis in Axis:
            holders = self.on(axis).holders(at.index(axis), layout.size(axis))
            spread, chosen = divmod(spread, len(holders))
            if at.index(axis) != holders[chosen]:
                return False
        return True

    def batch_axes(self, layout: Layout) -> tuple[Axis, ...]:
        """Return the axes that split the batch and along which the gradient is summed, in one joint sum."""
        return tuple(
            axis for axis in Axis if axis.splits_batch and layout.size(axis) > 1 and self.on(axis) == SAME_IN_PARTS
        )

    def cut_axes(self, layout: Layout) -> tuple[Axis, ...]:
        """Return the axes whose ranks hold different parts of the same tensors: never pipe, which splits the layers."""
        return tuple(
            axis
            for axis in Axis
            if axis is not Axis.PIPE and len(self.on(axis).holders(0, layout.size(axis))) < layout.size(axis)
        )

    def other_sums(self, layout: Layout) -> tuple[tuple[Axis, Placement], ...]:
        """Return the other axes along which the gradient is summed, each with its placement: which ranks sum."""
        done = self.batch_axes(layout)
        return tuple(
            (axis, self.on(axis))
            for axis in Axis
            if axis not in done
            and self.on(axis).gradient_in_parts
            and len(self.on(axis).holders(0, layout.size(axis))) > 1
        )


USUAL: Final = Placements(tuple(map(_usual, Axis)))
"""The placements of a parameter unless its layer says otherwise: whole on every rank of its pipeline stage."""

_NUMBER: Final = {axis: number for number, axis in enumerate(Axis)}
