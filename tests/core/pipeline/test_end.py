"""What stands at the end of the pipe: outputs are collected in every layout as one process computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from scaling.core.data.types import MicroBatch
from scaling.core.errors import ScheduleError
from scaling.core.pipeline import module
from scaling.core.pipeline.end import Collector, LossEnd
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.pipeline.lowering import lower
from scaling.core.pipeline.module import ParallelModule
from scaling.core.pipeline.planned import schedule_of
from scaling.core.pipeline.schedules import OneFOneB, Schedule
from scaling.core.topology.layout import Coordinate
from scaling.core.topology.topology import Topology
from tests.core.pipeline.toy_schedules import VGPipe
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.models import Loss, Model, layer_specs, micro_batches
from tests.reference.training import SEED
from tests.reference.worlds import topology_config

MODEL = Model()
Options = dict[str, Any]

INTERLEAVED: Options = {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2}


@dataclass
class Seen:
    """What one rank collected in one step after another, and the loss of the evaluation that came between."""

    place: Coordinate
    steps: list[list[Tensor]]
    loss: float


def shortened(batches: Iterator[MicroBatch], length: int) -> Iterator[MicroBatch]:
    for batch in batches:
        cut = {name: value[:, :length] if value.dim() > 1 else value for name, value in batch.inputs.items()}
        yield MicroBatch(cut, None)


def collect(rank: int, world_size: int, layout: Options, schedule: Schedule | None = None) -> Seen:
    """Collect the outputs of whole sequences, evaluate, and collect those of shorter ones."""
    config = topology_config(**{"global_batch_size": MODEL.global_batch, "micro_batch_size": 1, **layout})
    with (
        Topology.connect(config) as topology,
        mock.patch.object(module, "schedule_of", schedule_of if schedule is None else lambda config: schedule),
    ):
        built = ParallelModule(layer_specs(MODEL, topology), topology, config, seed=SEED)
        whole = built.forward_step(micro_batches(MODEL, 1, config, topology))
        loss = built.eval_step(micro_batches(MODEL, 1, config, topology), Loss(MODEL, topology)).loss
        short = built.forward_step(shortened(micro_batches(MODEL, 1, config, topology), 4))
        return Seen(topology.coordinate, [whole, short], float(loss))


@cache
def alone() -> Seen:
    return collect(0, 1, {"micro_batch_size": MODEL.global_batch})


def joined(seen: list[Seen], step: int) -> Tensor:
    """Return the output for the global batch: parts of the vocabulary beside each other, samples in their order."""
    at = {(one.place.model, one.place.data): one.steps[step] for one in seen if one.steps[step]}
    models, ranks = (1 + max(place[index] for place in at) for index in (0, 1))
    return torch.cat(
        [
            torch.cat([at[model, data][number] for model in range(models)], dim=-1)
            for number in range(len(at[0, 0]))
            for data in range(ranks)
        ]
    )


@pytest.mark.parametrize(
    ("layout", "schedule", "last"),
    [
        ({"data": 2, "micro_batch_size": 2}, None, 0),
        ({"model": 2, "sequence_parallel": True}, None, 0),
        ({"pipe": 2}, None, 1),
        ({"pipe": 2, **INTERLEAVED}, None, 1),
        ({"pipe": 2, "pipe_schedule": "gpipe", "activation_checkpointing_type": "every_layer"}, None, 1),
        ({"pipe": 2}, VGPipe(), 0),
        ({"pipe": 4, "data": 2}, None, 3),
        ({"pipe": 2, "data": 2, "model": 2}, None, 1),
        ({"pipe": 2, "data": 2, "model": 2, "sequence_parallel": True, **INTERLEAVED}, None, 1),
    ],
)
def test_outputs_are_collected_where_the_last_layer_is(layout: Options, schedule: Schedule | None, last: int) -> None:
    ranks = layout.get("pipe", 1) * layout.get("data", 1) * layout.get("model", 1)
    seen = run_distributed(collect, ranks, layout, schedule)
    for one in seen:
        assert bool(one.steps[0]) == (one.place.pipe == last)
        assert one.loss == pytest.approx(alone().loss, rel=1e-12)
    for step in (0, 1):
        (expected,) = alone().steps[step]
        assert expected.shape == (MODEL.global_batch, (8, 4)[step], MODEL.vocabulary)
        close(joined(seen, step), expected, tolerance=1e-12)


def one_layer() -> ParallelModule:
    config = topology_config(global_batch_size=2, micro_batch_size=1)
    return ParallelModule([LayerSpec(nn.Linear, 3, 3)], Topology.single(), config, seed=1)


def of_two() -> Iterator[MicroBatch]:
    yield from [MicroBatch(torch.ones(1, 3), None)] * 2


def test_a_forward_step_is_in_evaluation_mode_and_keeps_no_graph() -> None:
    built = one_layer()
    outputs = built.forward_step(of_two())
    assert len(outputs) == 2
    assert not built.training
    assert not any(output.requires_grad for output in outputs)


def test_a_backward_pass_starts_from_a_loss_that_something_trained_is_in() -> None:
    end = LossEnd(lambda output, targets: LossOutput(output.sum(), targets), torch.tensor(8.0), Topology.single())
    output = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss, scale = end.take(output, torch.tensor(2.0))
    assert loss.requires_grad
    assert (loss.item(), scale.item(), scale.dtype) == (3, 8, torch.float64)
    with pytest.raises(ScheduleError, match="the loss depends on no parameter"):
        end.take(output.detach(), torch.tensor(2.0))
    with torch.no_grad():
        end.take(output, torch.tensor(4.0))
    assert float(end.total.loss) == 3 * 3 / (2 + 2 + 4)


def test_a_backward_pass_needs_an_end_that_starts_it() -> None:
    with pytest.raises(ScheduleError, match=r"the end of the pipe \(Collector\) starts no backward pass"):
        one_layer().engine.run(lower(OneFOneB(), 0, 1, 2), of_two(), Collector())
