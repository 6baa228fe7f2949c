"""The result of a loss function, and the report of a step: sums and measures over the whole global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from scaling.core.collectives import ops
from scaling.core.errors import ScheduleError
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology


@dataclass(frozen=True)
class BatchMetric:
    """A metric that is not a sum over items: a maximum, a rank among all items, any function of the global batch.

    `items` [n, ...] are those of one micro-batch, and have the same shape in all micro-batches. `measure` takes the
    items of all micro-batches and ranks [N, ...] and returns one number, on the same device; the order of the items
    depends on the layout, so it must not matter. Where the batch is split, the items are sent to each rank of the last
    stage: keep them small, such as one maximum for each micro-batch. An evaluation reports the mean over its global
    batches; a column of `items` can mark samples that only fill up the last batch.
    """

    items: Tensor
    measure: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not self.items.dim():
            raise ScheduleError("the items of a BatchMetric are one number; they need a dimension to be joined along")


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch as a sum, so that sums over micro-batches and ranks mean the same everywhere.

    `loss_sum`: sum over the valid items (tokens, samples). `weight`: their number (or the sum of their weights).
    `metrics`: sums over the valid items as well, reported divided by the weight of the global batch; or a
    `BatchMetric`, reported as it is measured.
    """

    loss_sum: Tensor
    weight: Tensor | float
    metrics: Mapping[str, Tensor | BatchMetric] = field(default_factory=dict)

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


@dataclass(frozen=True)
class MetricNames:
    """The metrics that a loss function reports, by kind; each sorted."""

    sums: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()

    @classmethod
    def of(cls, metrics: Mapping[str, Tensor | BatchMetric]) -> Self:
        """Return the names of the metrics that a loss function reported."""
        measures = sorted(name for name, value in metrics.items() if isinstance(value, BatchMetric))
        return cls(tuple(sorted(metrics.keys() - measures)), tuple(measures))

    def __str__(self) -> str:
        return str(sorted([*self.sums, *self.measures]))


class StepLoss:
    """Sums of a step's losses, kept on the device in float64 until someone asks."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._sums: Tensor | None = None  # loss, weight, metrics that are sums; once reduced, measures as well
        self._names = MetricNames()
        self._items: dict[str, list[BatchMetric]] = {}
        self._batches = 1

    def add(self, output: LossOutput) -> None:
        """Add one micro-batch (last pipeline stage only)."""
        names = MetricNames.of(output.metrics)
        if self._sums is not None:
            self._check(names, earlier=self._names)
        self._names = names
        values: list[Any] = [output.loss_sum, output.weight, *(output.metrics[name] for name in names.sums)]
        device = self._topology.device
        row = torch.stack(
            [torch.as_tensor(value, device=device).detach().to(torch.float64).reshape(()) for value in values]
        )
        self._sums = row if self._sums is None else self._sums + row
        for name, value in output.metrics.items():
            if isinstance(value, BatchMetric):
                self._items.setdefault(name, []).append(value)

    def merge(self, other: StepLoss) -> None:
        """Add the sums of another step that has been reduced already."""
        if other._sums is None:
            return
        self._names = other._names
        self._batches = other._batches if self._sums is None else self._batches + other._batches
        self._sums = other._sums if self._sums is None else self._sums + other._sums

    def reduce(self, names: MetricNames) -> StepLoss:
        """Sum over the axes that split the batch, for every stage to know. Collective: all ranks; a few numbers.

        `names` are the metrics the last stage reports, which the other stages cannot know by themselves. The items of
        a `BatchMetric` are gathered over the axes that split the batch, on the ranks that run the last stage.
        """
        topology = self._topology
        if self._sums is not None:
            self._check(self._names, earlier=names)
        self._names = names
        alike = [axis for axis in Axis if not axis.splits_batch and axis is not Axis.PIPE]  # their ranks saw one loss
        counts = topology.index(*alike) == 0
        row = self._zeros()
        if names.measures:
            split = [axis for axis in Axis if axis.splits_batch]
            group = topology.group(*split)  # on all ranks: the first call creates it
            if self._sums is not None:
                measured = torch.stack([_measure(self._items[name], group) for name in names.measures])
                if counts and topology.index(*split) == 0:  # all these ranks measured the same
                    row[2 + len(names.sums) :] = measured
        if counts and self._sums is not None:  # only the last stage has sums
            row[: 2 + len(names.sums)] = self._sums
        self._items = {}
        self._sums = ops.all_reduce(row, topology.world)
        return self

    def _check(self, names: MetricNames, *, earlier: MetricNames) -> None:
        if names != earlier:
            kinds = "" if str(names) != str(earlier) else f", {list(earlier.measures)} of them as BatchMetric"
            raise ScheduleError(
                f"the loss function reported the metrics {names}, earlier {earlier}{kinds}; it must report the "
                "same for every micro-batch of training, and of evaluation"
            )

    @property
    def names(self) -> MetricNames:
        """Return the names of the metrics."""
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
        """Return the metrics on the device: sums per valid item, and measures of the global batch."""
        first = 2 + len(self._names.sums)
        vector = self._vector()
        return {
            **{name: self._mean(2 + index) for index, name in enumerate(self._names.sums)},
            **{name: vector[first + index] / self._batches for index, name in enumerate(self._names.measures)},
        }

    def _vector(self) -> Tensor:
        return self._zeros() if self._sums is None else self._sums

    def _zeros(self) -> Tensor:
        numbers = 2 + len(self._names.sums) + len(self._names.measures)
        return torch.zeros(numbers, dtype=torch.float64, device=self._topology.device)

    def _mean(self, index: int) -> Tensor:
        sums = self._vector()
        return sums[index] / sums[1].clamp_min(torch.finfo(torch.float64).tiny)


def _measure(parts: Sequence[BatchMetric], group: ops.Group) -> Tensor:
    """Return one number, measured over the items of all micro-batches of all ranks of the group."""
    items = torch.cat([part.items.detach() for part in parts]).contiguous()
    if group is not None:
        everyone = items.new_empty(group.size() * items.shape[0], *items.shape[1:])
        items = ops.all_gather(everyone, items, group)
    value: Any = parts[0].measure(items)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ScheduleError(f"the measure of a BatchMetric returned {what}; it must be a tensor of one number")
    return value.detach().to(torch.float64).reshape(())
