"""Which records share a row: all of them once, no row too full, few places empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.transformer.data.bins import Bins, filled, one_each, pack


def rows(bins: Bins) -> list[list[int]]:
    return [bins.row(index) for index in range(len(bins))]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 20), max_size=200), st.integers(20, 40))
def test_every_record_is_in_one_row_and_no_row_is_too_full(lengths: list[int], capacity: int) -> None:
    numbers = np.arange(len(lengths), dtype=np.int64) * 3 + 5
    bins = pack(numbers, np.array(lengths, np.int64), capacity)
    found = rows(bins)
    assert sorted(number for row in found for number in row) == numbers.tolist()
    assert all(0 < sum(lengths[(number - 5) // 3] for number in row) <= capacity for row in found)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_windows_lose_nothing_at_their_borders(count: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 33, count)
    bins = pack(np.arange(count), lengths, 32)
    assert sorted(bins.members.tolist()) == list(range(count))
    assert bins.bounds[-1] == count


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("median", [150, 400])
@pytest.mark.parametrize("sequence", [512, 1024, 2048, 4096])
def test_at_most_two_percent_of_the_places_stay_empty(median: int, sequence: int, cut: bool) -> None:
    lengths = np.exp(np.random.default_rng(median).normal(np.log(median), 0.8, 40_000)).astype(np.int64).clip(2)
    lengths = np.minimum(lengths, sequence + 1) if cut else lengths[lengths <= sequence + 1]
    bins = pack(np.arange(len(lengths)), lengths, sequence + 1)
    assert filled(lengths, len(bins), sequence + 1) >= 0.98


def test_records_sorted_by_length_are_packed_as_well() -> None:
    lengths = np.sort(np.exp(np.random.default_rng(0).normal(5, 0.8, 20_000)).astype(np.int64).clip(2, 513))
    bins = pack(np.arange(len(lengths)), lengths, 513)
    assert filled(lengths, len(bins), 513) >= 0.98


def test_rows_are_compact_arrays() -> None:
    bins = pack(np.arange(10_000), np.full(10_000, 3), 30)
    assert bins.members.dtype == np.int32
    assert len(bins) == 1000
    assert one_each(np.array([7, 1 << 40])).members.dtype == np.int64


def test_the_same_lengths_give_the_same_rows() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 3000)
    first, again = (pack(np.arange(3000), lengths, 64) for _ in range(2))
    assert rows(first) == rows(again)
