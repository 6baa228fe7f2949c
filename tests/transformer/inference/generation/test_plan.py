"""Pools have a place for every request, pad little, and take no more than they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core import ConfigError
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.inference.generation.plan import (
    MOST_PADDING,
    GenerationPlan,
    Need,
    RowBytes,
    attention_layers,
    cache_shape,
    plan_generation,
    row_bytes,
)

LAYERS = attention_layers(
    plan_of(
        TransformerArchitectureConfig.from_dict(
            {
                "vocab_size": 7,
                "hidden_size": 32,
                "num_layers": 3,
                "num_attention_heads": 4,
                "attention_num_kv_heads": 2,
                "attention_kinds": {"near": {"window": 20}, "all": {}},
                "attention_pattern": ["near", "all"],
            }
        )
    )
)
NEEDS = st.lists(st.builds(Need, st.integers(1, 300), st.integers(1, 4)), min_size=1, max_size=30)


def bytes_by_hand(positions: int) -> int:
    """Return what a row takes, in float32: keys and values of two heads of 8, two layers with a window of 20."""
    return 4 * 2 * 2 * 8 * (2 * min(positions, 20) + positions)


def needed(needs: Sequence[Need]) -> int:
    return sum(need.rows * bytes_by_hand(need.positions) for need in needs)


def taken(plan: GenerationPlan) -> int:
    return plan.cache_bytes(LAYERS, 1, 4)


def usual() -> RowBytes:
    return row_bytes([LAYERS], 1, 4)


@given(needs=NEEDS, groups=st.integers(1, 4))
def test_all_rows_have_a_place_at_once_and_pad_little(needs: list[Need], groups: int) -> None:
    plan = plan_generation(needs, groups=groups, chunk=8, bytes_of=usual())
    assert sorted(number for pool in plan.pools for number in pool.requests) == list(range(len(needs)))
    for pool in plan.pools:
        assert pool.rows == sum(needs[number].rows for number in pool.requests)
        assert pool.capacity == max(needs[number].positions for number in pool.requests)
    assert needed(needs) <= taken(plan) <= MOST_PADDING * needed(needs)
    sizes = [sum(len(pool.requests) for pool in plan.pools if pool.group == group) for group in range(groups)]
    assert max(sizes) - min(sizes) <= 1


@given(needs=NEEDS, groups=st.integers(1, 4), share=st.floats(0, 1))
def test_a_limit_is_kept_while_every_request_finds_a_place(needs: list[Need], groups: int, share: float) -> None:
    largest = max(need.rows * bytes_by_hand(need.positions) for need in needs)
    # One row is as long as any may be, where several requests of many samples take turns in it.
    least = max(need.rows for need in needs) * bytes_by_hand(max(need.positions for need in needs))
    limit = int(least + share * needed(needs))
    plan = plan_generation(needs, groups=groups, chunk=8, bytes_of=usual(), limit=limit)
    assert taken(plan) <= limit
    assert sorted(number for pool in plan.pools for number in pool.requests) == list(range(len(needs)))
    for pool in plan.pools:
        assert pool.rows >= max(needs[number].rows for number in pool.requests)
        assert pool.capacity >= max(needs[number].positions for number in pool.requests)
    with pytest.raises(
        ConfigError, match=rf"take {largest} bytes, but there is room for {largest - 1} \(max_cache_bytes"
    ):
        plan_generation(needs, groups=groups, chunk=8, bytes_of=usual(), limit=largest - 1)


def test_the_worst_of_many_lengths_pads_less_than_a_quarter() -> None:
    """Filled up to the longest they would take twice as much."""
    needs = [Need(32 + length) for length in range(1, 2001, 31)]
    plan = plan_generation(needs, groups=1, chunk=8, bytes_of=usual())
    assert taken(plan) <= 1.25 * needed(needs)
    assert len(plan.pools) <= 5
    assert len(needs) * bytes_by_hand(needs[-1].positions) > 1.8 * needed(needs)


def test_ranks_that_share_heads_of_keys_and_values_keep_them_each() -> None:
    shapes = [cache_shape(LAYERS[1], parts) for parts in (1, 2, 4)]
    assert [shape.heads for shape in shapes] == [2, 1, 1]
    assert row_bytes([LAYERS[:1], LAYERS[1:]], 2, 8)(100) == 2 * 1 * 8 * 8 * (20 + 100)


def test_a_window_of_some_heads_saves_nothing() -> None:
    assert cache_shape(replace(LAYERS[0], windowed_heads=2), 1).window is None
    assert cache_shape(LAYERS[0], 1).window == 20
