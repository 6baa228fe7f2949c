"""The loss of a step: one sum over one weight, whatever the micro-batches and ranks it comes from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.loss import BatchMetric, LossOutput, MetricNames, StepLoss
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.worlds import connected

NUMBERS = st.floats(-100, 100)


def output(loss_sum: float, weight: float, **metrics: float) -> LossOutput:
    return LossOutput(torch.tensor(loss_sum), weight, {name: torch.tensor(value) for name, value in metrics.items()})


@given(st.lists(st.tuples(NUMBERS, st.integers(1, 50), NUMBERS), min_size=1, max_size=8))
def test_micro_batches_count_by_their_weight(parts: list[tuple[float, int, float]]) -> None:
    total = StepLoss(Topology.single())
    for loss_sum, weight, hits in parts:
        total.add(output(loss_sum, weight, hits=hits))
    total.reduce(total.names)
    weight = sum(part[1] for part in parts)
    assert float(total.weight) == weight
    assert float(total.loss) == pytest.approx(sum(part[0] for part in parts) / weight, abs=1e-4)
    assert float(total.metrics()["hits"]) == pytest.approx(sum(part[2] for part in parts) / weight, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss_sum": torch.ones(3)}, r"loss_sum has shape \[3\]; it must be one number"),
        ({"loss_sum": 2.0}, "loss_sum is no tensor; it must be one number"),
        ({"weight": torch.ones(2, 3)}, r"weight of the loss has shape \[2, 3\]; it must be one number"),
        ({"metrics": {"hits": torch.ones(4)}}, r"hits of the loss has shape \[4\]; it must be one number"),
    ],
)
def test_a_loss_that_is_not_a_sum_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        LossOutput(**{"loss_sum": torch.ones(()), "weight": 1.0, **wrong})


def test_sums_are_kept_in_float64_on_the_device() -> None:
    total = StepLoss(Topology.single())
    for _ in range(1000):
        total.add(LossOutput(torch.tensor(0.1, requires_grad=True), torch.tensor(1, dtype=torch.int64)))
    assert total.loss.dtype == total.weight.dtype == torch.float64
    assert not total.loss.requires_grad
    assert float(total.loss) == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_metrics_are_told_apart_by_name_whatever_their_order() -> None:
    total = StepLoss(Topology.single())
    total.add(output(0, 1, b=2, a=1))
    total.add(output(0, 1, a=3, b=4))
    assert total.names == MetricNames(sums=("a", "b"))
    assert {name: float(value) for name, value in total.metrics().items()} == {"a": 2.0, "b": 3.0}


@pytest.mark.parametrize("other", [{}, {"b": 1.0}, {"a": 1.0, "b": 1.0}])
def test_micro_batches_that_report_other_metrics_are_refused(other: dict[str, float]) -> None:
    total = StepLoss(Topology.single())
    total.add(output(0, 1, a=1))
    with pytest.raises(ScheduleError, match=r"the loss function reported the metrics \[.*\], earlier \['a'\]"):
        total.add(output(0, 1, **other))


def test_a_step_without_valid_items_has_loss_zero() -> None:
    total = StepLoss(Topology.single())
    assert float(total.loss) == float(total.weight) == 0.0
    assert total.metrics() == {}
    total.add(output(0, 0, hits=0))
    total.reduce(MetricNames(sums=("hits",)))
    assert float(total.loss) == float(total.weight) == float(total.metrics()["hits"]) == 0.0


def test_a_loss_that_is_not_finite_stays_visible() -> None:
    total = StepLoss(Topology.single())
    total.add(output(math.nan, 3))
    assert math.isnan(float(total.loss))


def test_steps_merge_by_weight() -> None:
    total = StepLoss(Topology.single())
    for loss_sum, weight in ((6.0, 1), (3.0, 2)):
        step = StepLoss(Topology.single())
        step.add(output(loss_sum, weight, m=loss_sum))
        total.merge(step.reduce(step.names))
    total.merge(StepLoss(Topology.single()))
    assert (float(total.loss), float(total.weight), float(total.metrics()["m"])) == (3.0, 3.0, 3.0)


def spread(items: torch.Tensor) -> torch.Tensor:
    return items.amax() - items.amin()


def test_a_measure_sees_the_items_of_all_micro_batches() -> None:
    total = StepLoss(Topology.single())
    for items in ([1.0, 5.0], [-2.0, 3.0]):
        measured = BatchMetric(torch.tensor(items, requires_grad=True), spread)
        total.add(LossOutput(torch.tensor(4.0), 2, {"spread": measured, "a": torch.tensor(6.0)}))
    assert {name: float(value) for name, value in total.reduce(total.names).metrics().items()} == {"a": 3, "spread": 7}


def test_an_evaluation_reports_the_mean_of_what_its_batches_measure() -> None:
    total = StepLoss(Topology.single())
    for number, weight in ((3.0, 1), (6.0, 100), (9.0, 5)):
        step = StepLoss(Topology.single())
        step.add(
            LossOutput(torch.tensor(0.0), weight, {"largest": BatchMetric(torch.tensor([0.0, number]), torch.max)})
        )
        total.merge(step.reduce(step.names))
    assert float(total.metrics()["largest"]) == 6.0


def test_a_metric_that_changes_its_kind_is_refused() -> None:
    total = StepLoss(Topology.single())
    total.add(output(0, 1, a=1))
    with pytest.raises(
        ScheduleError, match=r"reported the metrics \['a'\], earlier \['a'\], \[\] of them as BatchMetric"
    ):
        total.add(LossOutput(torch.tensor(0.0), 1, {"a": BatchMetric(torch.ones(1), torch.max)}))


def test_what_is_no_measure_is_refused() -> None:
    with pytest.raises(ScheduleError, match="items of a BatchMetric are one number; they need a dimension"):
        BatchMetric(torch.tensor(1.0), torch.max)
    total = StepLoss(Topology.single())
    total.add(LossOutput(torch.tensor(0.0), 1, {"a": BatchMetric(torch.ones(2), torch.sort)}))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ScheduleError, match="the measure of a BatchMetric returned"):
        total.reduce(total.names)


def add_on_the_last_stage(rank: int, world_size: int) -> list[float]:
    with connected(pipe=2, data=2, model=2) as topology:
        total = StepLoss(topology)
        if topology.index(Axis.PIPE) == 1:
            data = topology.index(Axis.DATA)
            for items in ([[1.0 + data, 0.0]], [[7.0 * data, 0.0]]):
                metrics = {"a": torch.tensor(data / 2), "b": torch.tensor(50.0)}
                measured = {"c": BatchMetric(torch.tensor(items), spread)}
                total.add(LossOutput(torch.tensor(5.0 * (data + 1)), (1 + 3 * data) / 2, {**metrics, **measured}))
        total.reduce(MetricNames(("a", "b"), ("c",)))
        return [float(total.loss), float(total.weight), *(float(value) for value in total.metrics().values())]


def test_every_rank_learns_sums_and_measures_and_model_ranks_count_once() -> None:
    assert run_distributed(add_on_the_last_stage, 8) == [[30 / 5, 5.0, 1 / 5, 200 / 5, 7.0]] * 8
