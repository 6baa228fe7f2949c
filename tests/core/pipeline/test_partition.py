"""Partition: layers to stages."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import LayoutError
from scaling.core.pipeline.partition import PartitionMethod, partition

COSTS = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=9)


def stage_costs(costs: list[float], cut: tuple[range, ...]) -> list[Fraction]:
    return [sum((Fraction(costs[layer]) for layer in stage), Fraction()) for stage in cut]


def all_cuts(layers: int, stages: int) -> list[tuple[range, ...]]:
    return [
        tuple(range(start, stop) for start, stop in zip((0, *inner), (*inner, layers), strict=True))
        for inner in combinations(range(1, layers), stages - 1)
    ]


@given(COSTS, st.data(), st.sampled_from(["uniform", "balanced"]))
def test_every_layer_is_in_exactly_one_stage_and_no_stage_is_empty(
    costs: list[float], data: st.DataObject, method: PartitionMethod
) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    cut = partition(costs, stages, method)
    assert len(cut) == stages
    assert all(len(stage) > 0 for stage in cut)
    assert [layer for stage in cut for layer in stage] == list(range(len(costs)))


@given(COSTS, st.data())
def test_balanced_finds_what_trying_every_cut_finds(costs: list[float], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))

    def quality(cut: tuple[range, ...]) -> tuple[Fraction, Fraction, list[int]]:
        of_stage = stage_costs(costs, cut)
        return max(of_stage), sum((cost * cost for cost in of_stage), Fraction()), [-stage.stop for stage in cut]

    assert partition(costs, stages, "balanced") == min(all_cuts(len(costs), stages), key=quality)


@given(st.integers(1, 60), st.data(), st.floats(0, 10))
def test_balanced_cuts_layers_of_equal_cost_as_uniform_does(layers: int, data: st.DataObject, cost: float) -> None:
    stages = data.draw(st.integers(1, layers))
    assert [len(stage) for stage in partition([cost] * layers, stages, "uniform")] == [
        layers // stages + (stage < layers % stages) for stage in range(stages)
    ]
    if cost > 0:
        assert partition([cost] * layers, stages, "balanced") == partition([cost] * layers, stages, "uniform")


def test_uniform_gives_the_remainder_to_the_first_stages() -> None:
    assert partition([1.0] * 10, 4, "uniform") == (range(3), range(3, 6), range(6, 8), range(8, 10))


def test_balanced_leaves_no_stage_empty_where_the_ends_are_expensive() -> None:
    cut = partition([5, 1, 1, 1, 1, 1, 5], 4, "balanced")
    assert cut == (range(1), range(1, 4), range(4, 6), range(6, 7))


def test_balanced_handles_a_large_model() -> None:
    costs = [3.0, *([1.0] * 500), 7.0]
    assert max(stage_costs(costs, partition(costs, 64, "balanced"))) == 8


def test_overwrite_is_taken_as_it_is() -> None:
    assert partition([1.0] * 5, 3, "balanced", [0, 1, 2, 5]) == (range(1), range(1, 2), range(2, 5))


@pytest.mark.parametrize(
    ("overwrite", "message"),
    [
        ([0, 5], r"\[0, 5\] has 2 boundaries; 2 pipeline stages need 3"),
        ([1, 2, 5], "must start with 0 and end with 5"),
        ([0, 2, 4], "must start with 0 and end with 5"),
        ([0, 0, 5], "0 is followed by 0: a stage would be empty"),
        ([0, 7, 5], "7 is followed by 5"),
    ],
)
def test_an_overwrite_that_does_not_fit_is_refused(overwrite: list[int], message: str) -> None:
    with pytest.raises(LayoutError, match=rf"topology.pipe_partition_overwrite.*{message}"):
        partition([1.0] * 5, 2, "uniform", overwrite)


@pytest.mark.parametrize("method", ["uniform", "balanced"])
def test_more_stages_than_layers_is_refused(method: PartitionMethod) -> None:
    with pytest.raises(LayoutError, match=r"3 layers cannot fill 4 pipeline stages.*pipe_parallel_size"):
        partition([1.0] * 3, 4, method)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(LayoutError, match="at least 1 pipeline stage, not 0"):
        partition([1.0], 0)
    with pytest.raises(LayoutError, match="layer 1 has cost -1"):
        partition([1.0, -1.0], 1)
    with pytest.raises(LayoutError, match="layer 0 has cost inf"):
        partition([float("inf")], 1, "balanced")
