"""The language model with a mistake in one block, for the tutorial on debugging: a sum over the model ranks is missing.

scaling verify-layout CONFIG --layers examples.tutorials.broken_layers:layer_specs
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from scaling.core import LayerSpec, RowParallelLinear, Topology, linear
from scaling.transformer import TransformerArchitectureConfig
from scaling.transformer import layer_specs as usual_layer_specs


class NoSum(nn.Module):
    """A row-parallel linear layer that returns the product of its own part alone."""

    def __init__(self, right: RowParallelLinear) -> None:
        super().__init__()
        self.weight, self.bias, self.place = right.weight, right.bias, right.place

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def layer_specs(config: TransformerArchitectureConfig, topology: Topology, *, seed: int) -> list[LayerSpec]:
    """Return the usual layers with `NoSum` behind the MLP of the second block."""

    def break_it(block: Any) -> nn.Module:
        block.mlp.dense_out = NoSum(block.mlp.dense_out)
        changed: nn.Module = block
        return changed

    specs = usual_layer_specs(config, topology, seed=seed)
    return [*specs[:2], specs[2].then(break_it), *specs[3:]]
