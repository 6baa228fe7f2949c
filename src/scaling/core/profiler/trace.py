"""Spans as trace events for Perfetto and chrome://tracing: a row per rank, and further rows for overlapping spans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from scaling.core.profiler.profiler import Span
from scaling.core.topology.layout import Layout

MEASURED: Final = 0
"""The process of the trace in which each rank has a row."""
SIMULATED: Final = 1
"""The process with the predictions of the schedule."""

Event = Mapping[str, Any]


def span_events(spans: Sequence[Span], *, rank: int, world_size: int, to_wall: Callable[[float], float]) -> list[Event]:
    """Return a rank's spans in the order of their starts, with times of the common wall clock.

    Spans that are under way beside others are in further rows, `world_size` apart: as many rows as spans overlap.
    """
    aside = [span for span in spans if span.under_way]
    rows = {id(span): rank + world_size * (1 + lane) for span, lane in zip(aside, lanes(aside), strict=True)}
    return [
        _box(span, rows.get(id(span), rank), to_wall)
        for span in sorted(spans, key=lambda span: (span.start, -span.duration))
    ]


def _box(span: Span, row: int, to_wall: Callable[[float], float]) -> Event:
    # Computed from rounded ends, so that nested spans stay nested: the wall clock resolves a quarter microsecond.
    begin, end = to_wall(span.start) * 1e6, to_wall(span.end) * 1e6
    box = {"ph": "X", "name": span.name, "cat": span.category, "pid": MEASURED, "tid": row}
    return {**box, "ts": begin, "dur": end - begin, "args": dict(span.arguments)}


def lanes(spans: Sequence[Span]) -> list[int]:
    """Return a lane for each span in which it overlaps no other: the first lane that is free when the span begins."""
    free_at: list[float] = []
    found = [0] * len(spans)
    for number, span in sorted(enumerate(spans), key=lambda one: one[1].start):
        lane = next((lane for lane, end in enumerate(free_at) if end <= span.start), len(free_at))
        free_at[lane : lane + 1] = [span.end]
        found[number] = lane
    return found


def arrow(name: str, identity: str, *, sends: bool, row: int, at: float) -> Event:
    """Return one end of an arrow between two rows, in microseconds; the other end has the same identity."""
    end = {"name": name, "cat": "message", "id": identity, "pid": MEASURED, "tid": row, "ts": at}
    return {**end, "ph": "s"} if sends else {**end, "ph": "f", "bp": "e"}


def measured_rows(events: Sequence[Event], layout: Layout) -> Iterator[Event]:
    """Yield the events that name and order the measured rows: each rank's row next to those it has under way."""
    yield _named("process_name", MEASURED, 0, name="measured")
    used = {event["tid"] for event in events if event["pid"] == MEASURED}
    size = layout.world_size
    for row in sorted(used | set(range(size))):
        lane, rank = divmod(row, size)
        at = " ".join(f"{axis} {index}" for axis, index in vars(layout.coordinate(rank)).items())
        name = f"rank {rank} {at}" if lane == 0 else f"rank {rank} communication" + (f" {lane}" if lane > 1 else "")
        yield _named("thread_name", MEASURED, row, name=name)
        yield _named("thread_sort_index", MEASURED, row, sort_index=rank * (1 + len(used)) + lane)


def simulated_rows(ranks: int) -> Iterator[Event]:
    """Yield the events that name the rows of the simulated schedule, one for each pipe rank."""
    yield _named("process_name", SIMULATED, 0, name="simulated")
    for rank in range(ranks):
        yield _named("thread_name", SIMULATED, rank, name=f"pipe rank {rank}")


def _named(what: str, process: int, row: int, **arguments: Any) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": arguments}
