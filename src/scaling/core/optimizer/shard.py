"""Shards: the ranges of flat buffers that a rank updates, and the whole matrices in them for rules that need these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.nn.parameter import Piece
from scaling.core.optimizer.flat_buffer import FlatBuffer, master_dtype
from scaling.core.optimizer.rule import UpdateRule
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import Placements
from scaling.core.topology.topology import Topology


@dataclass(frozen=True)
class Matrix:
    """A named tensor (of any number of dimensions), of which this rank updates the part that it holds, or all of it.

    Where parallel layers cut it, every rank of the cut works on its part at the same time: computations from the whole
    are repeated on each of them, with the same result. `master`, `gradients` and `slots` are views without padding.
    """

    piece: Piece
    """Its name, its whole shape, and the box of it that this rank holds: an empty one where the part is all padding."""
    master: Tensor
    gradients: Tensor
    slots: Mapping[str, Tensor]
    cut_over: Sequence[ops.Group]
    """The groups whose ranks hold the whole together, one for each axis that cuts it."""
    gives: bool
    """False where another rank of the cut holds the same part and contributes it to the whole."""

    def whole(self, part: Tensor) -> Tensor:
        """Return the whole tensor, of which each rank passes its part. Collective: all ranks of the cut; all-reduce.

        An all-reduce sends the matrix twice where an all-gather would send it once, but works with any boxes.
        """
        if not self.cut_over:
            return part
        whole = part.new_zeros(self.piece.shape)
        if self.gives:
            self.part(whole).copy_(part)
        for group in self.cut_over:
            ops.all_reduce(whole, group)
        return whole

    def part(self, whole: Tensor) -> Tensor:
        """Return this rank's part of the whole, as a view."""
        box = self.piece.box
        return whole[tuple(slice(start, stop) for start, stop in zip(box.offset, box.stop, strict=True))]


@dataclass(frozen=True)
class FlatShard:
    """A range of a buffer that this rank updates, as vectors."""

    buffer: FlatBuffer
    owned: slice
    placements: Placements
    """The shard's placement along each axis: with ZeRO, it is this rank's alone along those that split the batch."""
    weights: Tensor
    gradients: Tensor
    master: Tensor
    """The weights that are updated, in at least float32: `weights` themselves, or their copies."""
    slots: Mapping[str, Tensor]
    """The rule's state, in the master's type, or in bfloat16 where the rule says so."""
    matrices: tuple[Matrix, ...]
    """The named tensors that lie in the range, where the rule asks for whole ones."""

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """Return the tensors that a checkpoint holds besides weights: the slots, and the master where it is a copy."""
        return {"master": self.master, **self.slots} if self.separate else self.slots

    @property
    def separate(self) -> bool:
        """Return whether the master is a copy."""
        return self.master is not self.weights

    def part(self, start: int, stop: int) -> FlatShard:
        """Return a range of the shard, counted from the shard's start, without matrices; all vectors are views."""
        weights = self.weights[start:stop]
        return replace(
            self,
            owned=slice(self.owned.start + start, self.owned.start + stop),
            weights=weights,
            gradients=self.gradients[start:stop],
            master=self.master[start:stop] if self.separate else weights,
            slots={name: slot[start:stop] for name, slot in self.slots.items()},
            matrices=(),
        )


def make_shard(
    buffer: FlatBuffer, owned: slice, rule: UpdateRule, placements: Placements, topology: Topology
) -> FlatShard:
    """Return a shard whose slots are zero."""
    weights, gradients = buffer.weights[owned], buffer.gradients[owned]
    master = weights.to(master_dtype(weights.dtype))
    slots = {
        slot: torch.zeros_like(master, dtype=slot_dtype(master.dtype, bfloat16=slot in rule.bfloat16_slots))
        for slot in rule.slots
    }
    vectors = {"master": master, "gradients": gradients, **slots}
    matrices = tuple(_matrices(buffer, owned, vectors, topology)) if rule.whole_matrices else ()
    return FlatShard(buffer, owned, placements, weights, gradients, master, slots, matrices)


def slot_dtype(master: torch.dtype, *, bfloat16: bool) -> torch.dtype:
    """Return the type in which a slot is kept for a master of a type: float64 stays float64. Pure."""
    return torch.bfloat16 if bfloat16 and master != torch.float64 else master


def slot_bytes(rule: UpdateRule, weights: torch.dtype) -> int:
    """Return the bytes that a rule's slots take for each weight of a type. Pure."""
    master = master_dtype(weights)
    return sum(slot_dtype(master, bfloat16=slot in rule.bfloat16_slots).itemsize for slot in rule.slots)


def _matrices(buffer: FlatBuffer, owned: slice, vectors: Mapping[str, Tensor], topology: Topology) -> Iterator[Matrix]:
    """Yield the tensors of the parameters in a range, which cuts none of them."""
    placements, layout = buffer.kind.placements, topology.layout
    cut = placements.cut_axes(layout)
    gives = placements.cut(axis for axis in Axis if axis not in cut).stands_for(layout, topology.coordinate)
    groups = [topology.group(axis) for axis in cut]
    for (parameter, description), place in zip(buffer.parameters, buffer.placements, strict=True):
        if place.start == place.stop or not owned.start <= place.start < owned.stop:
            continue
        inside = slice(place.start - owned.start, place.stop - owned.start)
        local = {name: vector[inside].view(parameter.shape) for name, vector in vectors.items()}
        for piece in description.pieces:
            views = {name: piece.local(values) for name, values in local.items()}
            yield Matrix(piece, views.pop("master"), views.pop("gradients"), views, groups, gives)
