"""The parameters of a planned model: names, whole shapes, initial values, and the part that each model rank holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from scaling.core import SAME, SAME_IN_PARTS, Heads, Placement, Shard, even_shard, padded_shard


@dataclass(frozen=True)
class Whole:
    """No cut: every model rank holds the whole parameter."""

    always_in_parts: bool = False
    """Whether ranks get only parts of the gradient in every layout. False: only if they hold slices of the sequence."""


@dataclass(frozen=True)
class Even:
    """A cut of one dimension into equal parts: 0 rows (output features), 1 columns (input features)."""

    dim: int


@dataclass(frozen=True)
class Padded:
    """A cut of one dimension into parts of one length, the last ones filled up with padding (a vocabulary)."""

    dim: int = 0


Cut: TypeAlias = "Whole | Even | Padded | Heads"
"""How the model axis cuts a parameter; `Heads` cuts rows between heads, which ranks share where they are too few."""


@dataclass(frozen=True)
class Start:
    """Initial values: normal with this standard deviation, uniform between plus and minus this, or all equal to it."""

    kind: Literal["normal", "uniform", "constant"]
    value: float


@dataclass(frozen=True, kw_only=True)
class ParameterPlan:
    """A named tensor of the whole model, as checkpoints hold it."""

    name: str
    """Name within its layer at first; `ModelPlan.parameters` gives the name in the model."""
    shape: tuple[int, ...]
    cut: Cut
    start: Start

    def shard(self, ranks: int, index: int) -> Shard | None:
        """Return the part of model rank `index` of `ranks`, None for the whole; `LayoutError` for an invalid cut."""
        match self.cut:
            case Whole():
                return None
            case Even(dim):
                return even_shard(self.shape[dim], ranks, index, dim=dim, what=self.name)
            case Padded(dim):
                return padded_shard(self.shape[dim], ranks, index, dim=dim)
            case Heads() as heads:
                return heads.shard(ranks, index)

    def placement(self, ranks: int, *, sequence_parallel: bool) -> Placement:
        """Return the placement along a model axis of `ranks`: who holds the same, and whether gradients are partial."""
        shard, in_parts = self.shard(ranks, 0), False
        if isinstance(self.cut, Whole):
            in_parts = sequence_parallel or self.cut.always_in_parts
        elif shard is not None:
            in_parts = shard.replicas > 1
        placement = SAME_IN_PARTS if in_parts else SAME
        return placement if shard is None else replace(placement, copies=shard.replicas)
