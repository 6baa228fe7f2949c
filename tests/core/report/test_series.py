"""Thinning keeps extremes, smoothing keeps its place and its range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.report.series import Series, last_of_each_step, smoothed, thinned, window

ANY = st.floats(allow_nan=True, allow_infinity=True, width=64)
VALUES = st.lists(ANY, min_size=1, max_size=300)


def of(values: list[float]) -> Series:
    return Series.of(range(1, len(values) + 1), values)


@given(values=VALUES, buckets=st.integers(1, 40))
def test_thinned_values_are_some_of_the_values_in_their_order_with_both_ends_and_both_extremes(
    values: list[float], buckets: int
) -> None:
    whole, few = of(values), thinned(of(values), buckets)
    assert len(few) <= max(2 * buckets + 2, 2)
    assert (np.diff(few.steps) > 0).all()
    np.testing.assert_array_equal(few.values, whole.values[few.steps - 1])
    assert (few.steps[0], few.steps[-1]) == (1, len(values))
    if len(whole.finite):
        assert few.finite.values.min() == whole.finite.values.min()
        assert few.finite.values.max() == whole.finite.values.max()


def test_a_spike_of_one_step_among_very_many_stays() -> None:
    values = [1.0] * 100_000
    values[51_234], values[77_001] = 9.0, -3.0
    few = thinned(of(values), 300)
    assert {51_235: 9.0, 77_002: -3.0}.items() <= dict(
        zip(few.steps.tolist(), few.values.tolist(), strict=True)
    ).items()


@given(values=VALUES, points=st.integers(1, 100))
def test_smoothed_values_lie_within_the_finite_values_at_some_of_their_steps(values: list[float], points: int) -> None:
    finite, line = of(values).finite, smoothed(of(values), points)
    assert len(line) == min(len(finite), points)
    assert np.isin(line.steps, finite.steps).all()
    if len(finite):
        assert finite.values.min() <= line.values.min() <= line.values.max() <= finite.values.max()


def test_smoothing_is_the_mean_of_the_window_and_neither_late_nor_early() -> None:
    straight = of([2.0 * step for step in range(500)])
    np.testing.assert_allclose(smoothed(straight, 500).values, straight.values, atol=1e-9)
    bump = of([0.0] * 200 + [1.0] + [0.0] * 200)
    wide = window(401)
    line = smoothed(bump, 401)
    assert line.values.tolist().count(0.0) == 401 - wide
    assert line.values[line.values > 0] == pytest.approx([1 / wide] * wide)
    assert line.steps[line.values > 0].mean() == 201


def test_what_comes_after_a_huge_value_is_as_exact_as_before() -> None:
    line = smoothed(of([1.0] * 200 + [1e300] + [1.0] * 200), 401)
    assert line.values[-1] == line.values[0] == 1.0


def test_few_values_are_not_smoothed() -> None:
    assert window(10) == 1
    assert smoothed(of([1.0, 5.0, 2.0]), 10).values.tolist() == [1.0, 5.0, 2.0]


@given(steps=st.lists(st.integers(0, 30), max_size=60))
def test_each_step_is_kept_once_as_it_was_written_last(steps: list[int]) -> None:
    kept, former = last_of_each_step(Series.of(steps, list(range(len(steps)))))
    last = {step: float(index) for index, step in enumerate(steps)}
    assert dict(zip(kept.steps.tolist(), kept.values.tolist(), strict=True)) == last
    assert kept.steps.tolist() == sorted(last)
    assert sorted([*kept.values, *former.values]) == list(range(len(steps)))
