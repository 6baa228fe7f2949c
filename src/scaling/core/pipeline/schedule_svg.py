"""Draw simulated steps as SVG: a row for each pipe rank, a box for each computation, time from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scaling.core.pipeline.actions import (
    Accept,
    Backward,
    BackwardInput,
    BackwardWeight,
    Choose,
    Compute,
    Forward,
    Recv,
    Send,
)
from scaling.core.pipeline.draw import label
from scaling.core.pipeline.simulate import Event, Simulation
from scaling.core.svg import MARGIN, Area, Picture, nice_step, text_width

_ROW: Final = 26.0
_GAP: Final = 5.0
"""Between rows without arrows."""
_WIDE_GAP: Final = 24.0
"""Between rows with arrows."""
_SHADES: Final = 4
"""Number of chunks of a rank that have a shade of their own; further chunks begin again with the first shade."""
_NAMES: Final[Mapping[type[Compute], tuple[str, str]]] = {
    Forward: ("forward", "forward"),
    Backward: ("backward", "backward"),
    BackwardInput: ("input", "gradient of the input"),
    BackwardWeight: ("weight", "gradient of the weights"),
    Choose: ("choose", "tokens chosen"),
    Accept: ("accept", "tokens taken in"),
}
"""The kind of box of each computation, and its name in words."""
_WIRES: Final[Mapping[str, str]] = {"activation": "blue", "gradient": "green", "token": "purple"}


def draw_schedule(
    simulation: Simulation,
    *,
    title: str = "",
    unit: str = "",
    messages: bool = False,
    width: float = 960,
    most_ranks: int = 16,
) -> str:
    """Return a simulated step as SVG text. Pure; does for one step what `draw_schedules` does for several."""
    return draw_schedules({title: simulation}, unit=unit, messages=messages, width=width, most_ranks=most_ranks)


def draw_schedules(
    simulations: Mapping[str, Simulation],
    *,
    unit: str = "",
    messages: bool = False,
    width: float = 960,
    most_ranks: int = 16,
) -> str:
    """Return simulated steps as SVG text, one below the other on one axis of time, each under its name. Pure.

    A computation is a box, with its `draw.label` where that fits, in a shade for each of its rank's chunks; grey is
    time in which a rank waits. A number after each row says for how many micro-batches (of one stage) it keeps
    activations at most; above the rows are the duration of the step and its bubble. `unit` says what the axis counts;
    with `messages`, arrows go from sends to receives. Of many ranks the first `most_ranks` are drawn, and a line says
    how many more there are. `width` is about how many units the picture is wide.
    """
    name = "; ".join(text for text in simulations if text) or "A step of the pipeline"
    picture = Picture(title=name, description="; ".join(_summary(step) for step in simulations.values()))
    longest = max((step.makespan for step in simulations.values()), default=0.0)
    ranks = max((len(step.idle) for step in simulations.values()), default=0)
    left = MARGIN + text_width(f"rank {ranks}", 13) + 4
    right = width - MARGIN - text_width("keeps 100", 12)
    scale = (right - left) / longest if longest else 0.0
    gap = _WIDE_GAP if messages else _GAP
    y = MARGIN
    for heading, step in simulations.items():
        y = _draw_heading(picture, heading, step, y)
        rows = _Rows(left, y, scale, gap, min(len(step.idle), max(1, most_ranks)))
        _draw_boxes(picture, step, rows)
        if messages:
            _draw_messages(picture, step, rows)
        y = rows.y(rows.shown) - gap
        if more := len(step.idle) - rows.shown:
            picture.words(MARGIN, y + 17, f"… and {more} more ranks", style="faint")
            y += 24
        y += 20
    _draw_axis(picture, longest, unit, _Rows(left, y - 12, scale, gap, 0))
    _draw_legend(picture, list(simulations.values()), y + 34, messages=messages)
    return picture.render()


@dataclass(frozen=True)
class _Rows:
    """Where times and ranks lie in one drawing."""

    left: float
    top: float
    scale: float
    gap: float
    shown: int

    def x(self, time: float) -> float:
        return self.left + time * self.scale

    def y(self, rank: int) -> float:
        return self.top + rank * (_ROW + self.gap)


def _draw_heading(picture: Picture, heading: str, step: Simulation, y: float) -> float:
    """Write the name of a step and what it costs; return where its rows begin."""
    if heading:
        picture.words(MARGIN, y + 13, heading, size=15, style="bold")
        y += 18
    picture.words(MARGIN, y + 13, _summary(step), size=13, style="faint")
    return y + 24


def _draw_boxes(picture: Picture, step: Simulation, rows: _Rows) -> None:
    """Draw the rows, and in them a box for every computation that takes time."""
    trains = any(isinstance(event.action, (Backward, BackwardInput, BackwardWeight)) for event in step.events)
    for rank in range(rows.shown):
        y = rows.y(rank)
        picture.words(MARGIN, y + _ROW / 2 + 4.5, f"rank {rank}")
        picture.box(Area(rows.left, y, step.makespan * rows.scale, _ROW), "idle", round_by=0)
        if trains:
            kept = f"keeps {step.peak_activations_of_rank[rank]}"
            picture.words(rows.x(step.makespan) + 6, y + _ROW / 2 + 4.5, kept, size=12, style="faint")
    for event in step.events:
        if isinstance(event.action, Compute) and event.end > event.start and event.rank < rows.shown:
            area = Area(rows.x(event.start), rows.y(event.rank), (event.end - event.start) * rows.scale, _ROW)
            kind, name = _kind(event.action, step), label(event.action, step.stages)
            picture.box(area, kind, label=name, tip=_tip(event, event.action))


def _draw_messages(picture: Picture, step: Simulation, rows: _Rows) -> None:
    """Draw an arrow from every send to its receive, from edge to edge of the two rows."""
    sent = {event.action.message(): event for event in step.events if isinstance(event.action, Send)}
    for event in step.events:
        if not isinstance(event.action, Recv):
            continue
        source = sent[event.action.message()]
        if max(source.rank, event.rank) >= rows.shown:
            continue
        down = event.rank > source.rank
        start = rows.x(source.start), rows.y(source.rank) + (_ROW if down else 0)
        end = rows.x(event.end), rows.y(event.rank) + (0 if down else _ROW)
        picture.line([start, end], _WIRES[event.action.payload], arrow=True, width=1.25)


def _draw_axis(picture: Picture, longest: float, unit: str, rows: _Rows) -> None:
    """Draw the axis of time with a number at every few units."""
    picture.line([(rows.left, rows.top), (rows.x(longest), rows.top)], "faint", width=1)
    step = nice_step(longest, max(1, int(longest * rows.scale / 48))) if longest else 1.0
    for number in range(int(longest / step + 1e-9) + 1):
        x = rows.x(number * step)
        picture.line([(x, rows.top), (x, rows.top + 5)], "faint", width=1)
        picture.words(x, rows.top + 18, f"{number * step:g}", anchor="middle", size=12, style="faint")
    picture.words(rows.left, rows.top + 34, f"time{f', in {unit}' if unit else ''}", size=12, style="faint")


def _draw_legend(picture: Picture, steps: Sequence[Simulation], y: float, *, messages: bool) -> None:
    """Explain the colours of the computations that occur, and of waiting."""
    x = MARGIN
    present = {type(event.action) for step in steps for event in step.events}
    entries = [
        (f"{kind}0" if kind in ("forward", "backward") else kind, f"{one.letter}  {words}")
        for one, (kind, words) in _NAMES.items()
        if one in present
    ]
    for kind, words in [*entries, ("idle", "waits")]:
        picture.box(Area(x, y, 14, 14), kind)
        picture.words(x + 20, y + 11.5, words, size=12)
        x += 34 + text_width(words, 12)
    wires = {event.action.payload for step in steps for event in step.events if isinstance(event.action, Send)}
    for payload in sorted(wires) if messages else ():
        picture.line([(x, y + 7), (x + 22, y + 7)], _WIRES[payload], arrow=True, width=1.25)
        picture.words(x + 28, y + 11.5, payload, size=12)
        x += 42 + text_width(payload, 12)
    if any(len(step.stages) > len(step.idle) for step in steps):
        picture.words(x, y + 11.5, "shades: a rank's stages (F3.1: micro-batch 3, its second)", size=12, style="faint")


def _summary(step: Simulation) -> str:
    """Return in words what a step costs."""
    return f"takes {step.makespan:.6g}, bubble {100 * step.bubble:.1f} %"


def _kind(action: Compute, step: Simulation) -> str:
    """Return the kind of box of a computation."""
    kind, _ = _NAMES[type(action)]
    return f"{kind}{step.stages.chunk_of(action.stage) % _SHADES}" if kind in ("forward", "backward") else kind


def _tip(event: Event, action: Compute) -> str:
    """Return one computation in words."""
    _, words = _NAMES[type(action)]
    return f"{words}: micro-batch {action.micro_batch}, stage {action.stage}, {event.start:.6g} to {event.end:.6g}"
