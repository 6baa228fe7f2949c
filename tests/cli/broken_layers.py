"""A user's model: the usual one, but for a row-parallel linear in one block that adds its bias on every rank."""

from __future__ import annotations

from torch import Tensor, nn

from scaling.core import Axis, LayerSpec, RowParallelLinear, Topology, linear
from scaling.core.collectives.autograd import reduce_from_model
from scaling.transformer import TransformerArchitectureConfig
from scaling.transformer import layer_specs as usual_layer_specs
from scaling.transformer.layers.block import TransformerLayer


class BiasOnEveryRank(nn.Module):
    def __init__(self, right: RowParallelLinear, topology: Topology) -> None:
        super().__init__()
        self.weight, self.bias, self.topology = right.weight, right.bias, topology

    def forward(self, x: Tensor) -> Tensor:
        return reduce_from_model(linear(x, self.weight, self.bias), self.topology.group(Axis.MODEL))


def layer_specs(config: TransformerArchitectureConfig, topology: Topology, *, seed: int) -> list[LayerSpec]:
    specs = usual_layer_specs(config, topology, seed=seed)

    def break_it(layer: nn.Module) -> nn.Module:
        assert isinstance(layer, TransformerLayer)
        layer.mlp.dense_out = BiasOnEveryRank(layer.mlp.dense_out, topology)  # type: ignore[assignment]  # on purpose
        return layer

    return [*specs[:2], specs[2].then(break_it), *specs[3:]]
