"""Two layers on four samples, as an engine's model with its optimizer and as one function of whole weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scaling.core.data.types import MicroBatch
from scaling.core.nn.linear import ColumnParallelLinear, linear
from scaling.core.nn.parameter import meta, update_meta
from scaling.core.nn.place import Place
from scaling.core.optimizer.config import OptimizerConfig
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput, StepLoss
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.reference.assembly import everything, module_and_optimizer
from tests.reference.worlds import random, topology_config

WIDTH, SAMPLES = 8, 4
RATE = 1e-2


class Layer(nn.Module):
    """A plain layer; half-precision products are rounded as the library rounds them."""

    def __init__(self, dtype: torch.dtype, *, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = ColumnParallelLinear(WIDTH, WIDTH, place=Place(dtype=dtype))
        self.offset = nn.Parameter(torch.randn(WIDTH).to(dtype))
        update_meta(self.offset, lr_scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(linear(x, self.linear.weight, self.linear.bias)) + self.offset


def make(
    topology: Topology | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    layers: int = 2,
    scale: float = 1.0,
    usual_weight: float = SAMPLES,
    decay: float = 0.1,
    independent: bool = False,
    **options: Any,
) -> tuple[ParallelModule, Optimizer]:
    topology = topology or Topology.single()
    data = topology.size(Axis.DATA)
    config = topology_config(data=data, global_batch_size=SAMPLES, micro_batch_size=1)
    specs = [LayerSpec(Layer, dtype, scale=scale) for _ in range(layers)]
    return module_and_optimizer(
        specs,
        topology,
        config,
        OptimizerConfig.from_dict(options),
        groups=everything(RATE, weight_decay=decay, independent_weight_decay=independent),
        usual_weight=usual_weight,
    )


def sample(step: int, number: int, dtype: torch.dtype) -> Tensor:
    """Return one sample of a step."""
    return random(1, WIDTH, seed=100 * step + number, dtype=dtype)


def loss_sum(output: Tensor) -> Tensor:
    wide = output if output.dtype == torch.float64 else output.float()
    return (wide - 0.5).square().sum()


def loss(output: Tensor, targets: Tensor) -> LossOutput:
    return LossOutput(loss_sum(output) * targets, targets)


def batches(step: int, topology: Topology, dtype: torch.dtype, weight: float, offset: float) -> Iterator[MicroBatch]:
    """Yield this data rank's micro-batches, of the given weight each."""
    for number in range(topology.index(Axis.DATA), SAMPLES, topology.size(Axis.DATA)):
        yield MicroBatch(sample(step, number, dtype) + offset, torch.tensor(weight, dtype=torch.float64))


def train_step(
    module: ParallelModule,
    optimizer: Optimizer,
    step: int,
    *,
    dtype: torch.dtype = torch.float64,
    weight: float = 1.0,
    offset: float = 0.0,
) -> StepLoss:
    """Run forward and backward passes; `offset` is added to this rank's samples."""
    data = batches(step, module.topology, dtype, weight, offset)
    return module.train_step(data, loss, gradient_scale=optimizer.gradient_scale)


def values(module: ParallelModule) -> dict[str, Tensor]:
    return {meta(parameter).name: parameter.detach().clone() for parameter in module.parameters()}


def forward(weights: Mapping[str, Tensor], x: Tensor, layers: int = 2) -> Tensor:
    for index in range(layers):
        prefix = f"layers.{index}"
        x = torch.tanh(linear(x, weights[f"{prefix}.linear.weight"], weights[f"{prefix}.linear.bias"]))
        x = x + weights[f"{prefix}.offset"]
    return x
