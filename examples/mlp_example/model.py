"""The model: layers that know nothing of ranks, and a loss that is a sum."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from examples.mlp_example.config import ArchitectureConfig
from examples.mlp_example.data import NO_DIGIT
from scaling.core import ColumnParallelLinear, LayerSpec, LossFunction, LossOutput, Place, RowParallelLinear, Topology


class Hidden(nn.Module):
    """Add to x a function of two matrices: the first cut by its outputs, the second by its inputs."""

    def __init__(self, dim: int, topology: Topology) -> None:
        super().__init__()
        place = Place(topology)
        self.up = ColumnParallelLinear(dim, dim, place=place)
        self.down = RowParallelLinear(dim, dim, place=place)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.down(F.gelu(self.up(x)))
        return x + change


def layer_specs(config: ArchitectureConfig, topology: Topology) -> list[LayerSpec]:
    """Return the layers in order; each process builds those of its pipeline stage."""
    return [
        LayerSpec(nn.Flatten),
        LayerSpec(nn.Linear, 28 * 28, config.hidden_dim),
        *[LayerSpec(Hidden, config.hidden_dim, topology) for _ in range(config.n_hidden_layers)],
        LayerSpec(nn.Linear, config.hidden_dim, 10),
    ]


def loss_function(topology: Topology) -> LossFunction:
    """Return the loss function; one of a model whose last layer is cut would need to know the topology."""
    return loss


def loss(logits: Tensor, labels: Tensor) -> LossOutput:
    """Return sums over the digits that count; the engine divides them by their number in the whole batch."""
    return LossOutput(
        F.cross_entropy(logits, labels, ignore_index=NO_DIGIT, reduction="sum"),
        weight=(labels != NO_DIGIT).sum(),
        metrics={"accuracy": (logits.argmax(dim=-1) == labels).sum()},
    )
