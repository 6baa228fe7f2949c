"""Schedules of a kind that the library does not have yet train as a single process does."""

from __future__ import annotations

from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch

from scaling.core.pipeline import module
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import OneFOneB, Schedule
from scaling.core.pipeline.simulate import simulate
from tests.core.pipeline.toy_schedules import VGPipe, ZeroBubble
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


def follow(schedule: Schedule, model: Model, layout: dict[str, Any], **options: Any) -> Outcome:
    ranks = layout["pipe"] * layout.get("data", 1) * layout.get("model", 1)
    return outcome_of(run_distributed(train_by, ranks, schedule, model, layout, options))


def check(schedule: Schedule, model: Model, layout: dict[str, Any], **options: Any) -> None:
    found, expected = follow(schedule, model, layout, **options), alone(model)
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


@pytest.mark.parametrize("recompute", ["disabled", "selective", "every_layer", "every_pipe_stage"])
def test_a_backward_pass_may_come_in_two_halves(recompute: str) -> None:
    check(ZeroBubble(), TIED, {"pipe": 4, "activation_checkpointing_type": recompute})


def test_divided_backward_passes_go_with_the_other_axes() -> None:
    check(ZeroBubble(), UNTIED, {"pipe": 2, "data": 2, "model": 2, "sequence_parallel": True}, zero=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_divided_backward_pass_gives_the_bits_of_an_undivided_one(dtype: torch.dtype) -> None:
    """With gradients added up in float32, and sums over the data axis started by the last of them."""
    model = Model(dtype=dtype, dropout=0.2, per_rank_dropout=True)
    layout = {"pipe": 2, "data": 2, "activation_checkpointing_type": "every_layer"}
    found, expected = (follow(schedule, model, layout) for schedule in (ZeroBubble(), OneFOneB()))
    assert found.losses == expected.losses
    assert all(torch.equal(value, expected.final[key]) for key, value in found.final.items())


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 16), (8, 8)])
def test_halves_that_nobody_waits_for_fill_the_bubble(ranks: int, micro_batches: int) -> None:
    plain, divided = (simulate(lower_all(schedule, ranks, micro_batches)) for schedule in (OneFOneB(), ZeroBubble()))
    assert plain.idle == (3 * (ranks - 1),) * ranks
    assert divided.idle == (ranks - 1,) * ranks
    assert divided.bubble < plain.bubble
    assert max(divided.peak_activations_of_rank) == max(plain.peak_activations_of_rank)
