"""A training step as a configuration schedules it."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core.pipeline.planned import planned_step, schedule_of
from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB
from tests.reference.worlds import topology_config

INTERLEAVED = {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": 2}


@pytest.mark.parametrize(
    ("options", "schedule"),
    [({}, OneFOneB()), ({"pipe_schedule": "gpipe"}, GPipe()), (INTERLEAVED, Interleaved1F1B(2))],
)
def test_the_configuration_names_the_schedule(options: dict[str, Any], schedule: object) -> None:
    assert schedule_of(topology_config(**options)) == schedule


def micro_batches(most: int | None, **options: Any) -> int:
    step = planned_step(topology_config(micro_batch_size=1, **options), most_micro_batches=most)
    return len({event.action.micro_batch for event in step.events})


def test_a_step_is_planned_for_all_ranks_and_of_a_long_one_as_much_as_is_asked_for() -> None:
    step = planned_step(topology_config(pipe_parallel_size=4, gradient_accumulation_steps=8, micro_batch_size=1))
    assert len(step.idle) == 4
    assert step.makespan == (8 + 3) * 3
    long = {"pipe_parallel_size": 4, "gradient_accumulation_steps": 64}
    assert micro_batches(None, **long) == 64
    assert micro_batches(100, **long) == 64
    assert micro_batches(15, **long, **INTERLEAVED) == 12
    assert micro_batches(1, **long, **INTERLEAVED) == 4
    assert micro_batches(1, pipe_parallel_size=4, gradient_accumulation_steps=2) == 2
