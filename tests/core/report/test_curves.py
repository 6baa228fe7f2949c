"""Figures: where lines and marks are, and what is said about them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.report.curves import Chart, Curve, Restart, draw_chart
from scaling.core.report.numbers import between, duration, powers, short, ticks
from scaling.core.report.scales import GRID, Scale, scale_of
from scaling.core.report.series import Series

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


def curve(values: list[float], **more: Series) -> Curve:
    return Curve(run=0, name="a", series=Series.of(range(1, len(values) + 1), values), **more)


def lines(figure: str, kind: str) -> list[list[list[int]]]:
    """Return the numbers of each part of each line of a kind."""
    found = re.findall(rf'd="([^"]*)" class="[^"]*\b{kind}"', figure)
    return [[[int(n) for n in part.split()] for part in path.split("M")[1:]] for path in found]


@given(values=st.lists(FINITE, min_size=1, max_size=20))
def test_every_value_is_within_the_picture_and_higher_values_are_higher(values: list[float]) -> None:
    scale = scale_of([Series.of(range(len(values)), values)])
    places = scale.place(np.array(values))
    assert ((places >= 0) & (places <= GRID)).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(places[order]) >= 0).all()
    assert all(scale.low <= tick <= scale.high or len(scale.ticks()) == 1 for tick in scale.ticks())


def test_a_line_goes_through_its_values() -> None:
    figure = draw_chart(Chart(title="x", curves=[curve([0.0, 1.0, 0.5])]), Scale(1, 3))
    assert lines(figure, "line") == [[[0, 9545, 0, 9545, 5000, 455, 10000, 5000]]]


def test_a_line_is_broken_where_there_is_no_number_and_the_step_is_named() -> None:
    chart = Chart(title="x", curves=[curve([1.0, float("nan"), 2.0, float("inf"), 3.0, 2.5])])
    figure = draw_chart(chart, Scale(1, 6))
    assert [len(part) // 2 - 1 for part in lines(figure, "line")[0]] == [1, 1, 2]
    assert len(lines(figure, "bad")) == 2
    assert "Not finite at step 2, 4 (red marks)" in figure


def test_steps_that_were_repeated_twice_are_two_lines() -> None:
    again = Series.of([5, 6, 7, 5, 6], [1.0, 1.0, 1.0, 2.0, 2.0])
    figure = draw_chart(Chart(title="x", curves=[curve([1.0, 2.0], again=again)]), Scale(1, 7))
    assert len(lines(figure, "again")[0]) == 2


def test_many_values_are_faint_below_their_mean_and_the_window_is_named() -> None:
    values = [1.0 + step % 2 for step in range(400)]
    figure = draw_chart(Chart(title="x", curves=[curve(values)], smooth=True), Scale(1, 400))
    assert len(lines(figure, "raw")) == len(lines(figure, "line")) == 1
    assert "Faint: every value. Line: mean of 11 values around each." in figure
    plain = draw_chart(Chart(title="x", curves=[curve(values)]), Scale(1, 400))
    assert not lines(plain, "raw")
    assert "mean" not in plain


def test_a_spike_makes_a_positive_curve_logarithmic_and_says_so() -> None:
    figure = draw_chart(Chart(title="x", curves=[curve([1.0] * 30 + [900.0])]), Scale(1, 31))
    assert "Logarithmic." in figure
    assert [float(word) for word in re.findall(r'class="y"[^>]*>([^<]*)<', figure)] == [1, 10, 100]
    assert "Logarithmic." not in draw_chart(Chart(title="x", curves=[curve([-1.0] * 30 + [900.0])]), Scale(1, 31))


def test_a_figure_is_told_in_words() -> None:
    figure = draw_chart(Chart(title="Loss", curves=[curve([3.0, 1.0, 2.0])]), Scale(1, 3))
    words = "Loss over steps. From 3 at step 1 to 2 at step 3, lowest 1 at step 2, highest 3 at step 1."
    assert f'aria-label="{words}"' in figure
    empty = draw_chart(Chart(title="Loss", curves=[curve([float("nan")])]), Scale(0, 1))
    assert "No finite value." in empty


def test_restarts_and_evaluations_are_marked_where_they_were() -> None:
    points = Series.of([2], [1.0])
    chart = Chart(title="x", curves=[curve([0.0, 1.0, 2.0], points=points)])
    figure = draw_chart(chart, Scale(1, 3), restarts=[Restart(0, 2, "a: went on")])
    assert lines(figure, "restart") == [[[5000, 0, 5000, GRID]]]
    assert [part[0] for part in lines(figure, "points")[0]] == [5000]
    assert "<title>a: went on</title>" in figure
    assert "Dots: evaluation." in figure


@given(low=st.floats(-1e9, 1e9), width=st.floats(1e-3, 1e9))
def test_ticks_are_few_round_and_within_the_range(low: float, width: float) -> None:
    high = low + width
    if high > low:
        found = ticks(low, high)
        assert len(found) <= 7
        assert all(low - width * 1e-6 <= tick <= high + width * 1e-6 for tick in found)


def test_powers_of_ten_are_as_many_as_fit() -> None:
    assert powers(0.5, 2000) == [1, 10, 100, 1000]
    assert len(powers(1e-30, 1e30)) <= 6
    assert powers(2.0, 5.0) == ticks(2.0, 5.0)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.003, "0.003"), (1e-7, "1e-07"), (6.0349, "6.035"), (5683.4, "5,683"), (61_440, "61.44k"),
     (1_234_567, "1.235M"), (-2e9, "-2G"), (float("nan"), "NaN"), (float("-inf"), "-infinity"), (3e17, "3e+17")],
)  # fmt: skip
def test_numbers_have_four_digits(value: float, words: str) -> None:
    assert short(value) == words


def test_an_axis_has_one_unit() -> None:
    figure = draw_chart(Chart(title="x", curves=[curve([100.0, 14_000.0])], from_zero=True), Scale(1, 2))
    assert re.findall(r'class="y"[^>]*>([^<]*)<', figure) == ["0", "5k", "10k"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.52, "0.52 s"), (90, "1 min 30 s"), (3600, "1 h 0 min"), (50_000, "13 h 53 min"), (200_000, "2 d 7 h")],
)
def test_times_have_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_is_no_time_has_no_distance() -> None:
    assert between("2030-01-01T00:00:00+00:00", "2030-01-01T00:01:00+00:00") == 60
    assert between(None, "2030-01-01T00:01:00+00:00") is None
    assert between("2030-01-01T00:00:00", "2030-01-01T00:01:00+00:00") is None
