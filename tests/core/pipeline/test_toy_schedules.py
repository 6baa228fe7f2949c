"""Schedules of a kind that the library does not have yet train as a single process does."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import pytest

from scaling.core.pipeline import module
from scaling.core.pipeline.schedules import Schedule
from tests.core.pipeline.toy_schedules import VGPipe
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.models import Model
from tests.reference.training import History, Outcome, outcome_of, train, train_in

TIED, UNTIED = Model(), Model(tied=False, kv_heads=2)


def train_by(
    rank: int, world_size: int, schedule: Schedule, model: Model, layout: dict[str, Any], options: dict[str, Any]
) -> History:
    with mock.patch.object(module, "schedule_of", return_value=schedule):
        return train(rank, world_size, model, layout, options, 3)


@cache
def alone(model: Model) -> Outcome:
    return train_in(model, {})


def check(schedule: Schedule, model: Model, layout: dict[str, Any], **options: Any) -> None:
    ranks = layout["pipe"] * layout.get("data", 1) * layout.get("model", 1)
    found = outcome_of(run_distributed(train_by, ranks, schedule, model, layout, options))
    expected = alone(model)
    assert found.losses == pytest.approx(expected.losses, rel=1e-10)
    assert found.norms == pytest.approx(expected.norms, rel=1e-10)
    assert found.evaluation == pytest.approx(expected.evaluation, rel=1e-10)
    for key, value in found.final.items():
        close(value, expected.final[key], key, tolerance=1e-10)


def test_the_first_and_the_last_stage_may_live_on_one_rank() -> None:
    check(VGPipe(), TIED, {"pipe": 2})


def test_stages_may_live_anywhere_beside_other_axes() -> None:
    layout = {"pipe": 2, "data": 2, "model": 2, "sequence_parallel": True}
    check(VGPipe(), UNTIED, {**layout, "activation_checkpointing_type": "every_pipe_stage"}, zero=True)
