"""Computed orders are permutations, reproducible, and look random."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.data.permutation import permute

keys = st.tuples(st.integers(0, 2**63), st.integers(-1, 2**40))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(length=st.integers(1, 5000), key=keys)
def test_every_key_permutes_every_range(length: int, key: tuple[int, int]) -> None:
    permuted = permute(np.arange(length), length=length, key=key)
    assert permuted.dtype == np.int64
    assert np.array_equal(np.sort(permuted), np.arange(length))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(length=st.integers(1, 2**62), key=keys, data=st.data())
def test_any_index_of_a_huge_range_is_sent_into_the_range_whatever_is_asked_for_with_it(
    length: int, key: tuple[int, int], data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=8, unique=True))
    together = permute(np.array(indices), length=length, key=key)
    alone = [int(permute(np.array([index]), length=length, key=key)[0]) for index in indices]
    assert list(together) == alone
    assert len(set(alone)) == len(alone)
    assert all(0 <= index < length for index in alone)


def test_the_same_key_always_gives_the_same_order() -> None:
    """A changed order would break the resumption of every run, so these numbers may never change."""
    assert permute(np.arange(10), length=10, key=(42, 0)).tolist() == [0, 2, 9, 5, 3, 4, 1, 7, 6, 8]
    assert permute(np.array([0, 10**9 - 1]), length=10**9, key=(42, 7)).tolist() == [75870045, 87665767]


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_orders_of_few_items_are_about_equally_frequent(length: int) -> None:
    orders = list(permutations(range(length)))
    tries = 200 * len(orders)
    counts = dict.fromkeys(orders, 0)
    for seed in range(tries):
        counts[tuple(permute(np.arange(length), length=length, key=(seed,)).tolist())] += 1
    assert min(counts.values()) > 120
    assert max(counts.values()) < 280


def test_where_items_go_is_unrelated_to_where_they_were_and_to_the_next_epoch() -> None:
    length = 100_000
    first, second = (permute(np.arange(length), length=length, key=(1, epoch)) for epoch in (0, 1))
    noise = 4 / np.sqrt(length)
    assert abs(np.corrcoef(np.arange(length), first)[0, 1]) < noise
    assert abs(np.corrcoef(first, second)[0, 1]) < noise
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < noise
    assert np.sum(first == np.arange(length)) < 10  # a random permutation has one fixed point on average
    cells = np.histogram2d(np.arange(length), first, bins=20)[0]
    chi_squared = float(((cells - length / 400) ** 2 / (length / 400)).sum())
    assert 280 < chi_squared < 450  # 361 degrees of freedom


def test_indices_outside_the_range_are_refused() -> None:
    with pytest.raises(IndexError, match=r"range\(10\)"):
        permute(np.array([3, 10]), length=10, key=(0,))
