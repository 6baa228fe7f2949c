"""How the outputs of a module lie on the model axis, for whoever looks at them from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scaling.core.nn.shard import Shard
from scaling.core.topology.placement import CUT, Placement


@dataclass(frozen=True)
class Output:
    """What a module returns, or some features of it: consecutive elements of the last dimension."""

    placement: Placement
    """Which ranks of the model axis hold the same values, and what each of them knows of their gradient."""
    label: str = ""
    """Module that would return it if it stood alone, beside the one that does; empty: that one."""
    features: int | None = None
    """Local number of features. None: all of them."""


@runtime_checkable
class DescribesOutputs(Protocol):
    """A module that knows what it, and the modules it consists of, return.

    What nobody describes is taken for what is exchanged between layers: alike on all ranks of the model axis, or under
    sequence parallelism a slice of the sequence on each.
    """

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        """Return for itself ("") and for modules within it, by their names, what these and all below them return.

        An empty sequence: nothing that could be compared between layouts.
        """
        ...


def placement_of(shard: Shard) -> Placement:
    """Return how activations lie that are cut as a shard says; ranks that share some see their gradient in parts."""
    return CUT if shard.replicas == 1 else Placement(copies=shard.replicas, gradient_in_parts=True)
