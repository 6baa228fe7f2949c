"""Offsets of clocks: what round trips say of them holds the truth, whatever the network does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.profiler.clock import ClockMap, HostClock, Offset, RoundTrip, best, between_ranks

seconds = st.floats(0, 0.1)
clocks = st.tuples(st.floats(-1e4, 1e4), st.floats(-2e-4, 2e-4))
"""Offset and drift of another clock."""


def trip(at: float, there: float, back: float, clock: tuple[float, float]) -> RoundTrip:
    """Return a round trip of which the way there and the way back take so long."""
    return RoundTrip(at, other(at + there, clock), at + there + back)


def other(at: float, clock: tuple[float, float]) -> float:
    offset, drift = clock
    return at + offset + drift * at


@given(st.lists(st.tuples(seconds, seconds), min_size=1), clocks)
def test_the_truth_is_within_the_uncertainty_and_the_shortest_trip_says_most(
    ways: list[tuple[float, float]], clock: tuple[float, float]
) -> None:
    found = best([trip(float(number), there, back, clock) for number, (there, back) in enumerate(ways)])
    assert abs(found.at + found.value - other(found.at, clock)) <= found.uncertainty + 1e-3 * found.uncertainty + 1e-9
    assert found.uncertainty == pytest.approx(min(there + back for there, back in ways) / 2, abs=1e-9)


@given(clocks, st.tuples(seconds, seconds), st.tuples(seconds, seconds), st.floats(1, 1000), st.floats(0, 1))
def test_between_two_measurements_a_time_is_as_certain_as_they_are(
    clock: tuple[float, float], first: tuple[float, float], last: tuple[float, float], length: float, part: float
) -> None:
    clock_map = ClockMap(trip(10.0, *first, clock).offset(), trip(11.0 + length, *last, clock).offset())
    at = clock_map.begin.at + part * (clock_map.end.at - clock_map.begin.at)
    assert abs(clock_map(at) - other(at, clock)) <= clock_map.uncertainty * 1.001 + 1e-9
    assert clock_map.uncertainty <= max(sum(first), sum(last)) / 2 + 1e-6


def test_a_time_of_a_clock_that_is_behind_becomes_the_other_clocks() -> None:
    # 100 s behind at first, then 100.2: it goes slower by a hundredth.
    first, last = RoundTrip(9.9, 110.0, 10.1).offset(), RoundTrip(29.8, 130.2, 30.2).offset()
    clock_map = ClockMap(first, last)
    assert [clock_map(at) for at in (10.0, 20.0, 30.0)] == pytest.approx([110.0, 120.1, 130.2])
    assert [first.uncertainty, last.uncertainty] == pytest.approx([0.1, 0.2])


def test_a_clock_that_was_set_meanwhile_is_as_uncertain_as_it_was_moved() -> None:
    clock_map = ClockMap(Offset(0.0, 5.0, 1e-4), Offset(10.0, 6.0, 2e-4))
    drift = 5e-3  # of ten seconds
    assert clock_map.uncertainty == pytest.approx(2e-4 + 1.0 - drift - 3e-4)
    assert ClockMap(Offset(0.0, 5.0, 0.0), Offset(10.0, 5.004, 0.0)).uncertainty == 0.0


def test_ranks_of_one_host_are_certain_of_each_other_and_those_of_two_hosts_as_both_are() -> None:
    assert between_ranks([0.0, 0.0], ["a", "a"]) == 0.0
    assert between_ranks([0.0, 2.0, 3.0, 2.0], ["a", "b", "c", "b"]) == 5.0
    assert between_ranks([2.0, 2.0], ["b", "b"]) == 0.0


def test_the_clock_of_this_process_goes_forward() -> None:
    clock = HostClock()
    first, second = clock.now(), clock.now()
    assert first <= second
    assert HostClock() == clock
