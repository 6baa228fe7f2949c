"""Boundaries that the simulator moves: never a longer pass, and often the shortest there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.pipeline import shortest_pass as module
from scaling.core.pipeline.actions import Action, Backward, Compute
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.partition import partition
from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.shortest_pass import shortest_pass
from scaling.core.pipeline.simulate import simulate

SCHEDULES: tuple[tuple[Schedule, int], ...] = (
    (GPipe(), 1),
    (OneFOneB(), 1),
    (Interleaved1F1B(2), 2),
    (Interleaved1F1B(3), 3),
)


def length(costs: list[float], cut: tuple[range, ...], schedule: Schedule, ranks: int, micro_batches: int) -> float:
    def duration(action: Action) -> float:
        if not isinstance(action, Compute):
            return 0.0
        return (1 + isinstance(action, Backward)) * sum(costs[layer] for layer in cut[action.stage])

    return simulate(lower_all(schedule, ranks, micro_batches), duration=duration).makespan


@settings(max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=6, max_size=12), st.sampled_from(SCHEDULES), st.sampled_from([1, 2]))
def test_no_pass_becomes_longer_and_every_layer_stays_in_one_stage(
    costs: list[float], schedule_and_chunks: tuple[Schedule, int], ranks: int
) -> None:
    schedule, chunks = schedule_and_chunks
    micro_batches = 2 * ranks
    first = partition(costs, ranks * chunks, "balanced")
    cut = shortest_pass(costs, first, schedule, ranks=ranks, micro_batches=micro_batches)
    assert [layer for stage in cut for layer in stage] == list(range(len(costs)))
    assert len(cut) == len(first)
    assert all(len(stage) > 0 for stage in cut)
    times = (length(costs, each, schedule, ranks, micro_batches) for each in (cut, first))
    assert next(times) <= next(times) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("blocks", "head"),
    [(4, 2.45), (6, 0.84), (6, 2.0), (8, 3.0)],
)
def test_a_heavy_head_is_weighed_as_trying_every_cut_weighs_it(blocks: int, head: float) -> None:
    costs = [0.01, *[1.0] * blocks, 0.01, head]
    schedule = Interleaved1F1B(2)
    cuts = [
        tuple(range(start, stop) for start, stop in zip((0, *inner), (*inner, len(costs)), strict=True))
        for inner in combinations(range(1, len(costs)), 3)
    ]
    shortest = min(length(costs, cut, schedule, 2, 4) for cut in cuts)
    found = shortest_pass(costs, partition(costs, 4, "balanced"), schedule, ranks=2, micro_batches=4)
    assert length(costs, found, schedule, 2, 4) <= 1.02 * shortest


def test_the_search_ends_with_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [1.0] * 40 + [9.0]
    first = partition(costs, 4, "uniform")
    free = shortest_pass(costs, first, OneFOneB(), ranks=4, micro_batches=8)
    monkeypatch.setattr(module, "MOST_ACTIONS", 0)
    assert shortest_pass(costs, first, OneFOneB(), ranks=4, micro_batches=8) == first
    assert length(costs, free, OneFOneB(), 4, 8) < length(costs, first, OneFOneB(), 4, 8)


def test_one_stage_has_nothing_to_move() -> None:
    assert shortest_pass([1.0, 2.0], (range(2),), OneFOneB(), ranks=1, micro_batches=3) == (range(2),)
