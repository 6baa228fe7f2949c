"""Trace events of spans: their rows, names and times."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scaling.core.profiler.profiler import Span
from scaling.core.profiler.trace import arrow, lanes, measured_rows, span_events
from scaling.core.topology.layout import Layout

NOW = 1.7e9
"""A wall clock's time, whose microseconds are rounded to quarters."""

intervals = st.tuples(st.floats(0, 1), st.floats(0, 1))


def spans(times: list[tuple[float, float]], *, under_way: bool = False) -> list[Span]:
    return [Span(f"{number}", "test", *interval, {}, under_way) for number, interval in enumerate(times)]


@given(st.lists(intervals))
def test_spans_of_one_lane_do_not_overlap_and_there_are_no_more_lanes_than_needed(
    times: list[tuple[float, float]],
) -> None:
    made = spans(times)
    found = lanes(made)
    for lane in set(found):
        own = sorted((span.start, span.end) for span, of in zip(made, found, strict=True) if of == lane)
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    most = max((sum(one.start <= span.start < one.end or one is span for one in made) for span in made), default=0)
    assert len(set(found)) <= most


@given(st.floats(0, 1), st.floats(0, 1e-3), st.floats(0, 1), st.floats(0, 1))
def test_what_lies_within_a_span_still_does_on_the_wall_clock(
    start: float, length: float, from_part: float, to_part: float
) -> None:
    first, last = sorted([start + from_part * length, start + to_part * length])
    outer, inner = Span("outer", "test", start, length), Span("inner", "test", first, last - first)
    if inner.end > outer.end:
        return
    events = {event["name"]: event for event in span_events([outer, inner], rank=0, world_size=1, to_wall=NOW.__add__)}
    ends = {name: event["ts"] + event["dur"] for name, event in events.items()}
    assert events["outer"]["ts"] <= events["inner"]["ts"]
    assert ends["inner"] <= ends["outer"]


def test_what_is_under_way_has_rows_behind_those_of_all_ranks_with_names() -> None:
    made = [Span("work", "test", 0.0, 3.0, {"step": 1}), *spans([(0.0, 2.0), (1.0, 2.0)], under_way=True)]
    events = span_events(made, rank=1, world_size=4, to_wall=lambda seconds: seconds)
    assert [(event["name"], event["tid"]) for event in events] == [("work", 1), ("0", 5), ("1", 9)]
    assert (events[0]["ts"], events[0]["dur"], events[0]["args"]) == (0.0, 3e6, {"step": 1})
    rows = list(measured_rows(events, Layout(pipe=2, data=2)))
    names = {row["tid"]: row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert names[1] == "rank 1 pipe 0 data 1 context 0 model 0"
    assert (names[5], names[9]) == ("rank 1 communication", "rank 1 communication 2")
    order = {row["tid"]: row["args"]["sort_index"] for row in rows if row["name"] == "thread_sort_index"}
    assert sorted(order, key=order.__getitem__) == [0, 1, 5, 9, 2, 3]


def test_an_arrow_has_two_ends() -> None:
    start, end = (arrow("gradient", "name", sends=sends, row=3, at=1.0) for sends in (True, False))
    assert (start["ph"], end["ph"]) == ("s", "f")
    assert (start["id"], start["tid"], start["ts"]) == (end["id"], end["tid"], end["ts"]) == ("name", 3, 1.0)
