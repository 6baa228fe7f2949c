"""The placement of a module's outputs on the model axis, for code that looks at them from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scaling.core.nn.shard import Shard
from scaling.core.topology.placement import CUT, Placement


@dataclass(frozen=True)
class Output:
    """The output of a module, or some features of it: consecutive elements of the last dimension."""

    placement: Placement
    """Which ranks of the model axis hold the same values, and whether each of them sees the whole gradient."""
    label: str = ""
    """Module that would return this output if it were separate, a sibling of the one that does; empty: that one."""
    features: int | None = None
    """Local number of features. None: all of them."""


@runtime_checkable
class DescribesOutputs(Protocol):
    """A module that describes its outputs and those of the modules it consists of.

    Outputs without a description are taken to lie as activations between layers do: the same on all ranks of the model
    axis, or under sequence parallelism a slice of the sequence on each.
    """

    def described_outputs(self) -> Mapping[str, Sequence[Output]]:
        """Return, by name, the outputs of itself ("") and of modules within it; each entry holds for all modules below.

        An empty sequence: no output that could be compared between layouts.
        """
        ...


def placement_of(shard: Shard) -> Placement:
    """Return the placement of activations cut as `shard` says; ranks that share some see parts of their gradient."""
    return CUT if shard.replicas == 1 else Placement(copies=shard.replicas, gradient_in_parts=True)
