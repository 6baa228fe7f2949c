"""The plan of a mixture: exact shares at any moment, random access, and how weights are derived."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scaling.core.data.config import BlendedDatasetConfig
from scaling.core.data.mixture import (
    SCATTER_WINDOW,
    Interleaving,
    ScatteredInterleaving,
    mixture_shares,
    mixture_weights,
    weights_by_num_docs,
    weights_examples_proportional,
)
from scaling.core.errors import ConfigError, DataError

share_lists = st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any)
size_lists = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)


def parts(sizes: list[int], weights: list[Fraction]) -> list[float]:
    """What part of the mixture each source makes up."""
    products = [size * weight for size, weight in zip(sizes, weights, strict=True)]
    return [float(product / sum(products)) for product in products]


@settings(deadline=None, derandomize=True, max_examples=80)
@given(shares=share_lists, cycle=st.integers(0, 10**9))
def test_every_cycle_holds_exactly_the_shares_and_draws_each_source_in_turn(shares: list[int], cycle: int) -> None:
    total = sum(shares)
    sources, draws = Interleaving(shares).locate(np.arange(cycle * total, (cycle + 1) * total))
    for source, share in enumerate(shares):
        assert draws[sources == source].tolist() == list(range(cycle * share, (cycle + 1) * share))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(shares=share_lists, position=st.integers(0, 10**15))
def test_random_access_agrees_with_counting(shares: list[int], position: int) -> None:
    interleaving = Interleaving(shares)
    sources, draws = interleaving.locate(np.arange(position, position + 50))
    counts = interleaving.draws_before(position)
    assert sum(counts) == position
    for source, draw in zip(sources, draws, strict=True):
        assert draw == counts[source]
        counts[source] += 1
    assert counts == interleaving.draws_before(position + 50)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(shares=share_lists, position=st.integers(0, 10**6))
def test_each_source_stays_close_to_its_share_at_any_moment(shares: list[int], position: int) -> None:
    bound = max(1, ceil(log2(len(shares))))
    for share, drawn in zip(shares, Interleaving(shares).draws_before(position), strict=True):
        assert abs(drawn - Fraction(position * share, sum(shares))) <= bound


def test_the_largest_shares_and_positions_do_not_overflow() -> None:
    interleaving = Interleaving([2**31 - 3, 1, 2])
    position = 10**17
    sources, draws = interleaving.locate(np.arange(position, position + 3))
    assert sum(interleaving.draws_before(position)) == position
    assert draws[sources == 0][0] == interleaving.draws_before(position)[0]
    scattered = ScatteredInterleaving(interleaving, samples=10**13, key=(1,))
    sources, draws = scattered.locate(np.arange(position, position + 3))
    assert draws[sources == 0].min() >= interleaving.draws_before(position - SCATTER_WINDOW)[0]


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    shares=share_lists,
    samples=st.integers(1, 200),
    window=st.integers(1, 50),
    start=st.integers(0, 10**9),
    data=st.data(),
)
def test_scattered_within_windows_the_samples_and_their_turn_stay(
    shares: list[int], samples: int, window: int, start: int, data: st.DataObject
) -> None:
    """The same draws of each source as unshuffled, in order, and the same whatever else is asked for with them."""
    interleaving = Interleaving(shares)
    scattered = ScatteredInterleaving(interleaving, samples=samples, key=(3,), window=window)
    cycle = -(-samples // sum(shares)) * sum(shares)
    start -= start % cycle
    sources, draws = scattered.locate(np.arange(start, start + 2 * cycle))
    for border in (0, cycle):
        for first in range(border, border + cycle, window):
            stop = min(first + window, border + cycle)
            before, after = interleaving.draws_before(start + first), interleaving.draws_before(start + stop)
            for source in range(len(shares)):
                here = draws[first:stop][sources[first:stop] == source]
                assert here.tolist() == list(range(before[source], after[source]))
    some = data.draw(st.lists(st.integers(0, 2 * cycle - 1), min_size=1, max_size=5))
    found = scattered.locate(start + np.array(some))
    assert [part.tolist() for part in found] == [sources[some].tolist(), draws[some].tolist()]


def test_scattered_sources_no_longer_come_in_a_regular_pattern() -> None:
    sources, _ = ScatteredInterleaving(Interleaving([1, 1]), samples=10**6, key=(1,)).locate(np.arange(4000))
    repeated = int((sources[1:] == sources[:-1]).sum())
    assert 1800 < repeated < 2200


def test_the_default_weights_leave_all_samples_alike() -> None:
    sizes = [100, 20, 5]
    assert mixture_weights(sizes, BlendedDatasetConfig()) == [Fraction(1, 3)] * 3
    assert mixture_shares(sizes, weights_by_num_docs(sizes)) == (20, 4, 1)


def test_alpha_evens_the_parts_out() -> None:
    sizes = [10_000, 100]
    assert mixture_shares(sizes, weights_by_num_docs(sizes, alpha=0)) == (1, 1)
    assert parts(sizes, weights_by_num_docs(sizes, alpha=0.5)) == pytest.approx([10 / 11, 1 / 11])


def test_examples_are_capped_and_tempered() -> None:
    sizes = [10_000, 100]
    assert mixture_shares(sizes, weights_examples_proportional(sizes, maximum=300)) == (3, 1)
    assert parts(sizes, weights_examples_proportional(sizes, temperature=2)) == pytest.approx([10 / 11, 1 / 11])
    assert parts(sizes, weights_examples_proportional(sizes, maximum=400, temperature=2)) == pytest.approx(
        [2 / 3, 1 / 3]
    )


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=size_lists, alpha=st.floats(0.05, 3))
def test_temperature_is_one_over_alpha(sizes: list[int], alpha: float) -> None:
    tempered = weights_examples_proportional(sizes, temperature=1 / alpha)
    assert parts(sizes, tempered) == pytest.approx(parts(sizes, weights_by_num_docs(sizes, alpha=alpha)))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=size_lists, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_alpha_gives_the_largest_source_a_larger_part(sizes: list[int], low: float, high: float) -> None:
    assume(low <= high)
    largest = sizes.index(max(sizes))
    part_low, part_high = (parts(sizes, weights_by_num_docs(sizes, alpha=alpha))[largest] for alpha in (low, high))
    assert part_low <= part_high + 1e-12


def test_explicit_weights_say_how_often_a_sample_is_seen_relative_to_others() -> None:
    config = BlendedDatasetConfig(weight_by_num_documents=False, weights=[0.1, 0.3])
    assert mixture_shares([100, 20], mixture_weights([100, 20], config)) == (5, 3)  # 100 * 0.1 to 20 * 0.3


def test_a_weight_of_zero_leaves_a_source_out() -> None:
    config = BlendedDatasetConfig(weight_by_num_documents=False, weights=[1, 0])
    for sizes in ([7, 20], [10**13, 3]):
        assert mixture_shares(sizes, mixture_weights(sizes, config)) == (1, 0)
    rounded = mixture_shares([10**13, 10**13 + 1, 20], [Fraction(1), Fraction(1), Fraction(0)])
    assert min(rounded[:2]) > 2**28
    assert rounded[2] == 0


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [2, -1]])
def test_weights_that_are_negative_or_all_zero_are_refused(weights: list[float]) -> None:
    assert BlendedDatasetConfig(weight_by_num_documents=False, weights=[0, 1e-9]).weights == [0, 1e-9]
    with pytest.raises(ConfigError, match="must not be negative, and at least one must be positive"):
        BlendedDatasetConfig(weight_by_num_documents=False, weights=weights)


def test_the_number_of_weights_must_be_that_of_the_data_sets() -> None:
    config = BlendedDatasetConfig(weight_by_num_documents=False, weights=[1, 1, 1])
    with pytest.raises(ConfigError, match="3 entries for 2 data sets"):
        mixture_weights([1, 2], config)


def test_weights_that_leave_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="nothing is left to mix"):
        mixture_shares([3, 4], [Fraction(0), Fraction(0)])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=st.lists(st.integers(1, 10**13), min_size=2, max_size=6), alpha=st.floats(0, 1))
def test_shares_are_accurate_and_never_lose_a_source(sizes: list[int], alpha: float) -> None:
    weights = weights_by_num_docs(sizes, alpha=alpha)
    shares = mixture_shares(sizes, weights)
    assert sum(shares) <= 2**31
    assert min(shares) >= 1
    for share, part in zip(shares, parts(sizes, weights), strict=True):
        assert share / sum(shares) == pytest.approx(part, abs=1e-8)
