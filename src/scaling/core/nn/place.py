"""The place of a layer: its ranks, its type, how its activations are cut, and how they enter and leave its shards."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scaling.core.collectives.autograd import copy_to_model, gather_sequence, reduce_from_model, scatter_sequence
from scaling.core.collectives.ops import Group
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology


@dataclass(frozen=True)
class Place:
    """The properties that all layers at one point of a model share. The default: one process, float32."""

    topology: Topology = field(default_factory=Topology.single)
    dtype: torch.dtype = torch.float32
    """Type of the parameters."""
    sequence_parallel: bool = False
    """Between the layers each model rank holds a slice of the sequence, [b, s / model_parallel_size, h]
    (arXiv:2205.05198); otherwise all hold the same activations."""

    @property
    def group(self) -> Group:
        """Return the group of the model axis; None where that is this rank alone."""
        return self.topology.group(Axis.MODEL)

    @property
    def parts(self) -> int:
        """Return the number of model ranks."""
        return self.topology.size(Axis.MODEL)

    @property
    def index(self) -> int:
        """Return this rank's position on the model axis."""
        return self.topology.index(Axis.MODEL)


def enter_model_parallel(x: Tensor, place: Place) -> Tensor:
    """Hand an activation to sharded computation: gather its sequence slices, or use the replicated tensor as it is.

    For column-parallel layers that share an input, call this once and pass each of them `entered=True`, so that their
    input gradients are summed over the model axis in one message. Backward: reduce-scatter, or all-reduce, of the
    gradient.
    """
    return gather_sequence(x, place.group) if place.sequence_parallel else copy_to_model(x, place.group)


def leave_model_parallel(partial: Tensor, place: Place) -> Tensor:
    """Sum partial results over the model axis; under sequence parallelism each rank keeps its slice of the sequence.

    Forward: all-reduce or reduce-scatter; backward: nothing or all-gather.
    """
    leave = scatter_sequence if place.sequence_parallel else reduce_from_model
    return leave(partial, place.group)
