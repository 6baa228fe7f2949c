"""The timeline of a profile as rows of bars, measured and simulated, and how each rank spent its time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scaling.core.report.markup import Child, Markup, join, table, tag
from scaling.core.report.numbers import ticks
from scaling.core.report.scales import GRID

MEASURED: Final = 0
"""The process of a profile that holds the measurements, with a thread for each rank."""
SIMULATED: Final = 1
"""The process that holds the planned schedule."""
_TITLES: Final[Mapping[int, str]] = {MEASURED: "Measured", SIMULATED: "Simulated"}
MAX_SPANS: Final = 3000
MAX_ROWS: Final = 64

_COMPUTE: Final = ("forward", "backward", "backwardinput", "backwardweight")
_SHARES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("computing", _COMPUTE),
    ("optimizer", ("optimizer",)),
    ("sending, receiving, collectives", ("send", "recv", "collective")),
    ("data", ("data",)),
    ("evaluation, checkpoint", ("evaluation", "checkpoint")),
)
"""The activities of a rank. Where several overlap in time, the first in this list counts."""
_NOTHING: Final = "nothing recorded"
_PLACE: Final = re.compile(r"Coordinate\(|(?:(?:pipe|data|context|model) \d+ ?)+$")
_ROW_NAME: Final = re.compile(r"(?:pipe )?rank \d+")


@dataclass(frozen=True)
class Span:
    """An activity with its start and end."""

    name: str
    kind: str
    start: float
    """In microseconds, like `end`."""
    end: float
    step: str = ""
    """The training step that the span is part of; empty where the profile does not say."""


@dataclass(frozen=True)
class Row:
    """The spans of one thread of a process, in the order of their starts."""

    name: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Process:
    """The rows of a process."""

    rows: Sequence[Row]
    is_simulated: bool = False

    @property
    def start(self) -> float:
        """Return when the first span begins."""
        return min(span.start for row in self.rows for span in row.spans)

    @property
    def end(self) -> float:
        """Return when the last span ends."""
        return max(span.end for row in self.rows for span in row.spans)


def read_processes(profile: Mapping[str, Any]) -> dict[int, Process]:
    """Return the measured and the simulated process of a Chrome trace. Unknown events are left out."""
    events = profile.get("traceEvents")
    found: dict[int, dict[str, list[Span]]] = {}
    names: dict[tuple[int, str], str] = {}
    order: dict[tuple[int, str], float] = {}
    for event in events if isinstance(events, list) else []:
        process = event.get("pid") if isinstance(event, dict) else None
        if type(process) is not int or process not in _TITLES:
            continue
        thread = str(event.get("tid"))
        arguments = event.get("args")
        if event.get("ph") == "M" and isinstance(arguments, dict):
            if event.get("name") == "thread_name":
                names[process, thread] = str(arguments.get("name"))
            elif isinstance(index := arguments.get("sort_index"), (int, float)) and index == index:
                order[process, thread] = index
        elif event.get("ph") == "X" and (times := _times(event)) is not None:
            step = str(arguments.get("step", "")) if isinstance(arguments, dict) else ""
            span = Span(str(event.get("name")), str(event.get("cat")), *times, step)
            found.setdefault(process, {}).setdefault(thread, []).append(span)
    return {
        process: Process(
            [
                Row(names.get((process, thread), thread), sorted(spans, key=lambda span: (span.start, -span.end)))
                for thread, spans in sorted(
                    threads.items(), key=lambda item: (order.get((process, item[0]), 0), *_natural(item[0]))
                )
            ],
            is_simulated=process == SIMULATED,
        )
        for process, threads in sorted(found.items())
    }


def _times(event: Mapping[str, Any]) -> tuple[float, float] | None:
    start, length = event.get("ts"), event.get("dur")
    if not (isinstance(start, (int, float)) and isinstance(length, (int, float))):
        return None
    return (float(start), float(start + length)) if 0 <= length < 1e15 and abs(start) < 1e18 else None


def _natural(thread: str) -> tuple[int, str]:
    return (int(thread), "") if thread.isdigit() and len(thread) < 19 else (2**62, thread)


def shares(row: Row, start: float, end: float) -> dict[str, float]:
    """Return the share of the time from `start` to `end` for each activity of a rank; the rest comes last. Pure."""
    covered: list[tuple[float, float]] = []
    found, before = {}, 0.0
    for name, kinds in _SHARES:
        covered = _union([*covered, *((span.start, span.end) for span in row.spans if span.kind in kinds)])
        total = sum(until - since for since, until in covered)
        found[name] = (total - before) / (end - start) if end > start else 0.0
        before = total
    return found | {_NOTHING: max(0.0, 1 - before / (end - start)) if end > start else 0.0}


def idle(process: Process) -> float | None:
    """Return the share of all ranks' time that is neither computing nor optimizer; None where nothing computes.

    Time between two steps counts in the measured process; in the simulated one, each step is taken by itself. Pure.
    """
    ranks = [row.spans for row in process.rows if any(span.kind in _COMPUTE for span in row.spans)]
    pieces = [ranks]
    if process.is_simulated:
        steps = {span.step for spans in ranks for span in spans}
        pieces = [[[span for span in spans if span.step == step] for spans in ranks] for step in steps]
    busy = whole = 0.0
    for piece in pieces:
        start = min((span.start for spans in piece for span in spans), default=0.0)
        end = max((span.end for spans in piece for span in spans), default=0.0)
        for spans in piece:
            covered = _union((span.start, span.end) for span in spans if span.kind in (*_COMPUTE, "optimizer"))
            busy += sum(until - since for since, until in covered)
            whole += end - start
    return 1 - busy / whole if whole else None


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return intervals that do not overlap and together cover the same time."""
    merged: list[tuple[float, float]] = []
    for since, until in sorted(intervals):
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], until))
        else:
            merged.append((since, until))
    return merged


def draw_timeline(profile: Mapping[str, Any]) -> Markup | None:
    """Return the rows of a profile with their shares of time; None where it has no spans. Pure."""
    parts: list[Child] = []
    for process, found in read_processes(profile).items():
        parts += [tag("h3", _TITLES[process]), _draw(found), _note(found)]
        parts.append(_table_of_shares(found) if process == MEASURED else None)
        if (share := idle(found)) is not None:
            said = f"Idle, which is neither forward, backward nor optimizer: {share:.1%}."
            parts.append(tag("p", said, class_="note"))
    if not parts:
        return None
    about = profile.get("otherData")
    uncertainty = about.get("clock_uncertainty_us") if isinstance(about, dict) else None
    said = "The whole profile opens in Perfetto (ui.perfetto.dev) and in chrome://tracing."
    if isinstance(uncertainty, (int, float)):
        said = f"The clocks of the hosts agree to {uncertainty / 1000:.3g} ms. {said}"
    return join([_legend(), *parts, tag("p", said, class_="note")])


def _legend() -> Markup:
    kinds = ("forward", "backward", "optimizer", "communication", "data", "other")
    return tag(
        "p", *(tag("span", tag("i", class_=f"k-{kind}"), kind, class_="kind") for kind in kinds), class_="legend"
    )


def _class_of(kind: str) -> str:
    match kind:
        case "forward" | "optimizer" | "data":
            return f"k-{kind}"
        case "backward" | "backwardinput" | "backwardweight":
            return "k-backward"
        case "send" | "recv" | "collective":
            return "k-communication"
        case _:
            return "k-other"


def _shown_until(found: Process) -> float:
    """Return the time up to which spans are drawn, so that there are not too many."""
    starts = sorted(span.start for row in found.rows[:MAX_ROWS] for span in row.spans)
    return found.end if len(starts) <= MAX_SPANS else starts[MAX_SPANS]


def _draw(found: Process) -> Markup:
    start, until, end = found.start, _shown_until(found), found.end
    width = max(until - start, 1e-9)
    rows = []
    for row in found.rows[:MAX_ROWS]:
        bars = [_bar(span, start, width) for span in row.spans if span.start < until or until == end]
        svg = tag("svg", *bars, viewBox=f"0 0 {GRID} 100", preserveAspectRatio="none", role="img", aria_label=row.name)
        rows.append(tag("div", tag("span", _short(row), title=row.name), svg, class_="row"))
    labels = [
        tag("span", f"{value:.6g} ms", class_="x", style=f"left:{value / (width / 1000) * 100:.4g}%")
        for value in ticks(0.0, width / 1000, count=4)
    ]
    return tag("div", *rows, tag("div", *labels, class_="times"), class_="timeline")


def _short(row: Row) -> str:
    """Return the rank of a row without its coordinate in the layout, and the rest of its name."""
    found = _ROW_NAME.match(row.name)
    if found is None:
        return row.name
    rest = row.name[found.end() :].strip(" ,:")
    return f"{found[0]} {rest}" if rest and not _PLACE.match(rest) else found[0]


def _bar(span: Span, start: float, width: float) -> Markup:
    x = round((span.start - start) / width * GRID)
    size = max(min(round((span.end - start) / width * GRID), GRID) - x, 8)
    top, height = (0, 100) if span.kind in _COMPUTE else (25, 75)
    title = tag("title", f"{span.name} ({span.kind}), {(span.end - span.start) / 1000:.4g} ms")
    return tag("rect", title, x=str(x), y=str(top), width=str(size), height=str(height), class_=_class_of(span.kind))


def _note(found: Process) -> Markup | None:
    said = []
    total = sum(len(row.spans) for row in found.rows[:MAX_ROWS])
    if total > MAX_SPANS:
        shown, whole = (_shown_until(found) - found.start) / 1000, (found.end - found.start) / 1000
        said.append(f"The first {shown:.4g} of {whole:.4g} ms: {MAX_SPANS:,} of {total:,} bars.")
    if len(found.rows) > MAX_ROWS:
        said.append(f"{len(found.rows) - MAX_ROWS} further rows are left out.")
    return tag("p", " ".join(said), class_="note") if said else None


def _table_of_shares(found: Process) -> Markup | None:
    rows = [row for row in found.rows if any(span.kind in _COMPUTE for span in row.spans)]
    if not rows:
        return None
    measured = [shares(row, found.start, found.end) for row in rows]
    names = [name for name in measured[0] if any(round(part[name], 3) for part in measured)]
    lines = [
        (_short(row), *(f"{part[name]:.1%}" for name in names))
        for row, part in zip(rows[:MAX_ROWS], measured, strict=False)
    ]
    return table(["", *names], lines, class_="facts")
