"""What a loss function returns, and the one sum over the whole global batch that a step reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.errors import ScheduleError
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch as a sum, so that sums over micro-batches and ranks mean the same everywhere.

    `loss_sum`: sum over the valid items (tokens, samples). `weight`: their number (or the sum of their weights).
    `metrics`: sums over the valid items as well; reported divided by the weight of the global batch.
    """

    loss_sum: Tensor
    weight: Tensor | float
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.loss_sum, Tensor) or self.loss_sum.dim():
            what = f"has shape {list(self.loss_sum.shape)}" if isinstance(self.loss_sum, Tensor) else "is no tensor"
            raise ScheduleError(f"loss_sum {what}; it must be one number with a gradient: losses.sum()")
        for name, value in (("weight", self.weight), *self.metrics.items()):
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ScheduleError(
                    f"{name} of the loss has shape {list(value.shape)}; it must be one number, the sum over the items"
                )


LossFunction = Callable[[Any, Any], LossOutput]
"""(output of the last layer, targets) -> LossOutput."""


class StepLoss:
    """Sums of a step's losses, kept on the device in float64 until someone asks."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._sums: Tensor | None = None
        self._names: tuple[str, ...] = ()

    def add(self, output: LossOutput) -> None:
        """Add one micro-batch (last pipeline stage only)."""
        names = tuple(sorted(output.metrics))
        if self._sums is not None:
            self._check(names, earlier=self._names)
        self._names = names
        values = [output.loss_sum, output.weight, *(output.metrics[name] for name in self._names)]
        device = self._topology.device
        row = torch.stack(
            [torch.as_tensor(value, device=device).detach().to(torch.float64).reshape(()) for value in values]
        )
        self._sums = row if self._sums is None else self._sums + row

    def merge(self, other: StepLoss) -> None:
        """Add the sums of another step that has been reduced already."""
        if other._sums is not None:
            self._names = other._names
            self._sums = other._sums if self._sums is None else self._sums + other._sums

    def reduce(self, names: tuple[str, ...]) -> StepLoss:
        """Sum over the axes that split the batch, and tell every stage. Collective: all ranks; a few numbers.

        `names` are the metrics the last stage reports, which the other stages cannot know by themselves.
        """
        topology = self._topology
        if self._sums is not None:
            self._check(self._names, earlier=names)
        self._names = names
        alike = [axis for axis in Axis if not axis.splits_batch and axis is not Axis.PIPE]  # all of them saw one loss
        mine = self._sums if topology.index(*alike) == 0 else None  # only the last stage has sums
        if mine is None:
            mine = torch.zeros(2 + len(names), dtype=torch.float64, device=topology.device)
        self._sums = ops.all_reduce(mine, topology.world)
        return self

    def _check(self, names: tuple[str, ...], *, earlier: tuple[str, ...]) -> None:
        if names != earlier:
            raise ScheduleError(
                f"the loss function reported the metrics {list(names)}, earlier {list(earlier)}; it must report the "
                "same for every micro-batch of training, and of evaluation"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the metrics, sorted."""
        return self._names

    @property
    def weight(self) -> Tensor:
        """Return the number of valid items, 0-d float64 on the device."""
        return self._vector()[1]

    @property
    def loss(self) -> Tensor:
        """Return the loss per valid item, 0-d float64 on the device; 0 where nothing was valid."""
        return self._mean(0)

    def metrics(self) -> dict[str, Tensor]:
        """Return the metrics per valid item, on the device."""
        return {name: self._mean(2 + index) for index, name in enumerate(self._names)}

    def _vector(self) -> Tensor:
        if self._sums is None:
            return torch.zeros(2 + len(self._names), dtype=torch.float64, device=self._topology.device)
        return self._sums

    def _mean(self, index: int) -> Tensor:
        sums = self._vector()
        return sums[index] / sums[1].clamp_min(torch.finfo(torch.float64).tiny)
