"""A small model on scaling.core alone, with layers that are right and layers that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core import (
    Axis,
    BaseDataset,
    ColumnParallelLinear,
    LayerNorm,
    LayerSpec,
    LossFunction,
    LossOutput,
    MicroBatch,
    Normal,
    Place,
    Recipe,
    RowParallelLinear,
    Topology,
    TopologyConfig,
    linear,
    new_parameter,
)
from scaling.core.collectives.autograd import reduce_from_model

Sample = tuple[Tensor, Tensor]


class Numbers(BaseDataset[Sample]):
    """Random inputs and outputs; one sample in five does not count."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        values = torch.randn(12, generator=torch.Generator().manual_seed(index))
        return values[:8], torch.cat([values[8:], torch.tensor([float(index % 5 > 0)])])

    def collate(self, samples: Sequence[Sample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        targets = torch.stack([target for _, target in samples])
        targets[:, -1] *= torch.tensor(valid)
        return MicroBatch(torch.stack([values for values, _ in samples]), targets)

    def fingerprint(self) -> str:
        return "numbers"


class Nothing(Numbers):
    """Samples of which none counts."""

    def __getitem__(self, index: int) -> Sample:
        inputs, targets = super().__getitem__(index)
        return inputs, targets * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])


class BiasOnEveryRank(nn.Module):
    """A row-parallel linear as one writes it by mistake: each rank adds the bias to its part of the sum."""

    def __init__(self, in_features: int, out_features: int, topology: Topology, bias_std: float) -> None:
        super().__init__()
        self.topology = topology
        right = RowParallelLinear(in_features, out_features, place=Place(topology))
        self.weight = right.weight
        self.bias = right.bias if bias_std == 0.0 else new_parameter((out_features,), Normal(bias_std))

    def forward(self, x: Tensor) -> Tensor:
        return reduce_from_model(linear(x, self.weight, self.bias), self.topology.group(Axis.MODEL))


class Block(nn.Module):
    """A block as it should be; a forgetful one does not sum the gradient of its input over the model axis."""

    def __init__(self, topology: Topology, down: nn.Module, *, forgetful: bool) -> None:
        super().__init__()
        self.norm = LayerNorm(16)
        self.up = ColumnParallelLinear(16, 32, place=Place(topology))
        self.down = down
        self.forgetful = forgetful

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        raised = self.up(normed, entered=True) if self.forgetful else self.up(normed)
        moved: Tensor = x + self.down(F.gelu(raised))
        return moved


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("this layer never works")


class Dying(nn.Module):
    """A layer that ends the process of rank 1 in the first step, or in the second."""

    def __init__(self, topology: Topology, *, later: bool = False) -> None:
        super().__init__()
        self.topology = topology
        self.micro_batches = 2 if later else 0

    def forward(self, x: Tensor) -> Tensor:
        self.micro_batches -= 1
        if self.topology.rank == 1 and self.micro_batches < 0:
            raise SystemExit(7)
        return x


class NotANumber(nn.Module):
    """A layer whose output, or only its gradient, is not a number."""

    def __init__(self, *, gradient_only: bool) -> None:
        super().__init__()
        self.gradient_only = gradient_only

    def forward(self, x: Tensor) -> Tensor:
        return x + (x * 0.0).sqrt() if self.gradient_only else x * torch.nan


class ByRank(nn.Module):
    """A layer that fills its parameter with other numbers on each data rank."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((16,), 1.0 + topology.index(Axis.DATA)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def layers(
    topology: Topology,
    *,
    broken: Collection[int] = (),
    bias_std: float = 0.0,
    forgetful: Collection[int] = (),
    extra: str = "",
) -> list[LayerSpec]:
    """Return the model. Blocks in `broken` count their bias too often, those in `forgetful` drop a gradient's sum."""

    def block(number: int) -> nn.Module:
        if number in broken:
            down: nn.Module = BiasOnEveryRank(32, 16, topology, bias_std)
        else:
            down = RowParallelLinear(32, 16, place=Place(topology))
        return Block(topology, down, forgetful=number in forgetful)

    extras = {
        "": [],
        "failing": [LayerSpec(Failing)],
        "dying": [LayerSpec(Dying, topology)],
        "dying later": [LayerSpec(Dying, topology, later=True)],
        "not a number": [LayerSpec(NotANumber, gradient_only=False)],
        "no gradient number": [LayerSpec(NotANumber, gradient_only=True)],
        "by rank": [LayerSpec(ByRank, topology)],
        "only in parallel": [LayerSpec(ByRank, topology)] if topology.layout.world_size > 1 else [],
    }
    return [
        LayerSpec(nn.Linear, 8, 16),
        *[LayerSpec(block, number) for number in range(3)],
        *extras[extra],
        LayerSpec(nn.Linear, 16, 4),
    ]


def loss_of(outputs: Tensor, targets: Tensor) -> LossOutput:
    losses, weights = (outputs - targets[:, :-1]).square().sum(-1), targets[:, -1]
    return LossOutput((losses * weights).sum(), weights.sum())


def mean_of_means(outputs: Tensor, targets: Tensor) -> LossOutput:
    right = loss_of(outputs, targets)
    return LossOutput(right.loss_sum / torch.as_tensor(right.weight).clamp_min(1.0), 1.0)


def loss_function(topology: Topology, *, wrong: bool = False) -> LossFunction:
    return mean_of_means if wrong else loss_of


def recipe(*, wrong_loss: bool = False, **options: object) -> Recipe:
    return Recipe(
        layers=partial(layers, **options),  # type: ignore[arg-type]  # the options of `layers`
        loss=partial(loss_function, wrong=wrong_loss),
        training=Numbers(50),
        evaluation=Numbers(7),
    )


def layout(*, pipe: int = 1, data: int = 1, model: int = 1, steps: int = 2) -> TopologyConfig:
    sizes = {"pipe_parallel_size": pipe, "data_parallel_size": data, "model_parallel_size": model}
    return TopologyConfig.from_dict({**sizes, "micro_batch_size": 2, "gradient_accumulation_steps": steps})
