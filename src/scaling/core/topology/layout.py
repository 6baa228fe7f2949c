"""Pure rank arithmetic: which rank sits where on the pipe, data, context and model axes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from math import prod

from scaling.core.errors import LayoutError


class Axis(str, Enum):
    """The mesh axes, slowest to fastest varying. Ranks that are neighbours on `MODEL` are neighbours on the machine."""

    PIPE = "pipe"
    DATA = "data"
    CONTEXT = "context"
    MODEL = "model"

    @property
    def splits_batch(self) -> bool:
        """Return whether ranks along the axis compute on different tokens, so each has a part of every gradient."""
        return self in (Axis.DATA, Axis.CONTEXT)


@dataclass(frozen=True)
class Coordinate:
    """The position of one rank on every axis."""

    pipe: int = 0
    data: int = 0
    context: int = 0
    model: int = 0

    def index(self, axis: Axis) -> int:
        """Return the position along `axis`."""
        index: int = getattr(self, axis.value)
        return index


@dataclass(frozen=True)
class Layout:
    """The sizes of all axes. Its methods answer for any rank, without a process group."""

    pipe: int = 1
    data: int = 1
    context: int = 1
    model: int = 1
    world_size: int = field(init=False)

    def __post_init__(self) -> None:
        for axis in Axis:
            if self.size(axis) < 1:
                raise LayoutError(
                    f"the {axis.value} axis has size {self.size(axis)}; every axis needs a size of at least 1"
                )
        object.__setattr__(self, "world_size", prod(self.size(axis) for axis in Axis))

    def size(self, axis: Axis) -> int:
        """Return the number of ranks along `axis`."""
        size: int = getattr(self, axis.value)
        return size

    def coordinate(self, rank: int) -> Coordinate:
        """Return the coordinate of `rank`. The model axis varies fastest, the pipe axis slowest."""
        if not 0 <= rank < self.world_size:
            raise LayoutError(
                f"rank {rank} is outside the world of {self.world_size} ranks (0 to {self.world_size - 1})"
            )
        at: dict[str, int] = {}
        for axis in reversed(Axis):
            rank, at[axis.value] = divmod(rank, self.size(axis))
        return Coordinate(**at)

    def rank(self, **indices: int) -> int:
        """Return the global rank at a coordinate: a position for each axis by name, 0 for an axis that is left out."""
        at = Coordinate(**indices)
        rank = 0
        for axis in Axis:
            if not 0 <= at.index(axis) < self.size(axis):
                raise LayoutError(f"index {at.index(axis)} is outside the {axis.value} axis of size {self.size(axis)}")
            rank = rank * self.size(axis) + at.index(axis)
        return rank

    def rank_along(self, axis: Axis, rank: int, index: int) -> int:
        """Return the rank that differs from `rank` only in having `index` along `axis`."""
        at = {other.value: self.coordinate(rank).index(other) for other in Axis}
        return self.rank(**{**at, axis.value: index})

    def group(self, axes: Axis | Iterable[Axis], rank: int) -> tuple[int, ...]:
        """Return the ranks that differ from `rank` along `axes` only (one axis, or several together), in rank order."""
        ranks = [rank]
        for axis in [axes] if isinstance(axes, Axis) else axes:
            ranks = [self.rank_along(axis, other, index) for other in ranks for index in range(self.size(axis))]
        return tuple(sorted(ranks))
