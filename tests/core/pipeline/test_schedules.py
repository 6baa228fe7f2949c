"""Schedules: who computes what, in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given

from scaling.core.errors import LayoutError
from scaling.core.pipeline.actions import (
    Accept,
    Backward,
    BackwardInput,
    BackwardWeight,
    Choose,
    Compute,
    Forward,
    earlier,
)
from scaling.core.pipeline.ring import TokenRing
from scaling.core.pipeline.schedules import ForwardOnly, GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.stage_map import InTurn
from tests.core.pipeline.strategies import configurations
from tests.core.pipeline.toy_schedules import ZeroBubble


def short(order: list[Compute], ranks: int) -> str:
    names = (f"{type(one).__name__[0]}{one.micro_batch}{'abcd'[one.stage // ranks]}" for one in order)
    return " ".join(names)


@given(configurations())
def test_every_stage_runs_every_micro_batch_once(configuration: tuple[Schedule, int, int]) -> None:
    schedule, ranks, micro_batches = configuration
    passes: list[type[Compute]] = [Forward, Backward]
    match schedule:
        case ForwardOnly():
            passes = [Forward]
        case ZeroBubble():
            passes = [Forward, BackwardInput, BackwardWeight]
        case TokenRing():
            passes = [Forward, Accept]
    for rank in range(ranks):
        order = list(schedule.compute(rank, ranks, micro_batches))
        stages = schedule.stages.over(ranks).stages_of(rank)
        every: set[Compute] = {
            run(batch, stage) for run in passes for batch in range(micro_batches) for stage in stages
        }
        if isinstance(schedule, TokenRing) and rank == ranks - 1:
            every |= {Choose(batch, rank) for batch in range(micro_batches)}
        assert len(order) == len(every)
        assert set(order) == every


@given(configurations())
def test_a_stage_runs_forwards_and_backwards_in_the_order_of_the_micro_batches(
    configuration: tuple[Schedule, int, int],
) -> None:
    schedule, ranks, micro_batches = configuration
    for rank in range(ranks):
        order = list(schedule.compute(rank, ranks, micro_batches))
        for run in (Forward, Backward, BackwardInput, BackwardWeight, Choose, Accept):
            for stage in {one.stage for one in order}:
                seen = [one.micro_batch for one in order if isinstance(one, run) and one.stage == stage]
                assert seen == sorted(seen)


@given(configurations())
def test_a_backward_comes_after_its_forward(configuration: tuple[Schedule, int, int]) -> None:
    schedule, ranks, micro_batches = configuration
    for rank in range(ranks):
        order = list(schedule.compute(rank, ranks, micro_batches))
        at = {one: position for position, one in enumerate(order)}
        for one in order:
            if first := earlier(one):
                assert at[first] < at[one]


def test_gpipe_runs_all_forwards_first() -> None:
    assert short(list(GPipe().compute(1, 2, 3)), 2) == "F0a F1a F2a B0a B1a B2a"


def test_one_f_one_b_alternates_after_the_warm_up() -> None:
    assert short(list(OneFOneB().compute(0, 3, 4)), 3) == "F0a F1a F2a B0a F3a B1a B2a B3a"
    assert short(list(OneFOneB().compute(2, 3, 4)), 3) == "F0a B0a F1a B1a F2a B2a F3a B3a"


def test_one_f_one_b_takes_fewer_micro_batches_than_ranks() -> None:
    assert short(list(OneFOneB().compute(0, 4, 2)), 4) == "F0a F1a B0a B1a"


def test_interleaved_sends_a_round_of_micro_batches_through_each_chunk() -> None:
    assert short(list(Interleaved1F1B(2).compute(0, 2, 4)), 2) == (
        "F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a B2b B3b B2a B3a"
    )
    assert short(list(Interleaved1F1B(2).compute(1, 2, 4)), 2) == (
        "F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a"
    )


def test_forward_only_takes_a_number_of_micro_batches_that_ranks_do_not_divide() -> None:
    assert short(list(ForwardOnly(InTurn(2)).compute(0, 2, 3)), 2) == "F0a F1a F0b F1b F2a F2b"


def test_interleaved_refuses_micro_batches_that_the_ranks_do_not_divide() -> None:
    with pytest.raises(LayoutError, match=r"gradient_accumulation_steps is 6 and pipe_parallel_size 4; set .* to 4"):
        list(Interleaved1F1B(2).compute(0, 4, 6))


@pytest.mark.parametrize("schedule", [GPipe, OneFOneB])
def test_a_schedule_for_one_stage_per_rank_takes_no_others(schedule: Callable[..., Schedule]) -> None:
    assert len(schedule().stages.over(3)) == 3
    with pytest.raises(TypeError):
        schedule(InTurn(2))


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(LayoutError, match="at least 1 stage, not 0"):
        list(Interleaved1F1B(0).compute(0, 1, 1))
    with pytest.raises(LayoutError, match="at least 1 micro-batch, not 0"):
        list(GPipe().compute(0, 1, 0))
    with pytest.raises(LayoutError, match="pipe rank 2 is outside the pipeline of 2 ranks"):
        list(OneFOneB().compute(2, 2, 1))
