"""Random streams: which ranks draw alike, and that nobody else's draws are touched."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.topology.layout import Coordinate
from scaling.core.topology.rng import RngTracker, Stream, derive_seed

CPU = torch.device("cpu")


def drawn(tracker: RngTracker, stream: Stream, count: int = 4) -> tuple[float, ...]:
    with tracker.stream(stream):
        return tuple(torch.rand(count).tolist())


def test_ranks_of_the_model_axis_share_one_stream_and_have_one_each() -> None:
    places = [Coordinate(*at) for at in product(range(2), repeat=4)]
    trackers = {place: RngTracker(place, CPU) for place in places}
    for tracker in trackers.values():
        tracker.seed(5)
    replicated = {place: drawn(tracker, "replicated") for place, tracker in trackers.items()}
    sharded = {place: drawn(tracker, "sharded") for place, tracker in trackers.items()}
    assert len(set(sharded.values())) == 16
    assert len(set(replicated.values())) == 8
    for place in places:
        assert replicated[place] == replicated[Coordinate(place.pipe, place.data, place.context, 1 - place.model)]
    assert not set(sharded.values()) & set(replicated.values())


def test_streams_go_on_where_they_were_and_do_not_disturb_one_another() -> None:
    whole, interrupted = (RngTracker(Coordinate(), CPU) for _ in range(2))
    expected = {stream: drawn(whole, stream, 8) for stream in get_args(Stream)}
    found: dict[Stream, tuple[float, ...]] = {"replicated": (), "sharded": ()}
    torch.manual_seed(1)
    outside = torch.rand(4, generator=torch.Generator().manual_seed(1)).tolist()
    between = []
    for _ in range(4):
        for stream in ("replicated", "sharded"):
            found[stream] += drawn(interrupted, stream, 2)
        between.append(torch.rand(1).item())
    assert found == expected
    assert between == outside


def test_seeding_restarts_both_streams() -> None:
    tracker = RngTracker(Coordinate(), CPU)
    first = [drawn(tracker, "replicated"), drawn(tracker, "sharded")]
    tracker.seed(0)
    assert [drawn(tracker, "replicated"), drawn(tracker, "sharded")] == first
    tracker.seed(1)
    assert drawn(tracker, "replicated") != first[0]


def test_a_saved_state_is_not_advanced_by_later_draws() -> None:
    tracker = RngTracker(Coordinate(), CPU)
    state = tracker.state()
    first = drawn(tracker, "sharded")
    assert drawn(tracker, "sharded") != first
    tracker.restore(state)
    assert drawn(tracker, "sharded") == first


def test_a_replay_repeats_and_then_goes_on_as_if_nothing_had_been_drawn() -> None:
    tracker = RngTracker(Coordinate(), CPU)
    state = tracker.state()
    first = drawn(tracker, "sharded")
    replay = tracker.replaying(state)
    for _ in range(2):  # as for a backward pass in two halves
        with replay:
            assert drawn(tracker, "sharded") == first
    second = drawn(tracker, "sharded")
    tracker.restore(state)
    assert (drawn(tracker, "sharded"), drawn(tracker, "sharded")) == (first, second)


def test_an_error_inside_a_stream_or_a_replay_leaves_the_generators_in_order() -> None:
    tracker = RngTracker(Coordinate(), CPU)
    before, outside = tracker.state(), torch.get_rng_state()
    with pytest.raises(RuntimeError), tracker.replaying(before), tracker.stream("sharded"):
        torch.rand(3, device="no device")
    assert torch.equal(torch.get_rng_state(), outside)
    assert all(torch.equal(tracker.state()[name], before[name]) for name in before)


@given(st.integers(), st.lists(st.text() | st.integers(), max_size=3))
def test_seeds_are_63_bits_and_a_function_of_their_names(seed: int, names: list[object]) -> None:
    derived = derive_seed(seed, *names)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, *names)
    assert derived != derive_seed(seed + 1, *names)
    assert derived != derive_seed(seed, *names, "more")


def test_names_do_not_run_into_one_another() -> None:
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert derive_seed(1, 2) != derive_seed(12)
