"""Curves of one or several runs over their steps, as a figure with its words in HTML and its lines in SVG.

The SVG is stretched to the available space; words outside it stay readable on a telephone. Attributes hold what a
script needs to draw the figure over another axis, or to zoom in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scaling.core.report.markup import Markup, join, tag
from scaling.core.report.numbers import short
from scaling.core.report.scales import GRID, Scale, scale_of
from scaling.core.report.series import EMPTY, Series, smoothed, thinned, window

_MARKED: Final = 60
"""At most so many steps without a finite value are marked; the caption gives their number in any case."""
_LISTED: Final = 3
_TOP: Final = 300
"""The height of those marks, in units of the grid."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The measurements of one run."""

    run: int
    """Counted from 0: decides the colour."""
    name: str
    series: Series
    again: Series = EMPTY
    """Of repeated steps, the values measured the first time."""
    points: Series = EMPTY
    """Values measured now and then, such as the loss of evaluations."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure."""

    title: str
    curves: Sequence[Curve]
    unit: str = ""
    smooth: bool = False
    from_zero: bool = False
    points_name: str = "evaluation"


@dataclass(frozen=True)
class Restart:
    """A place where a run resumed from a checkpoint."""

    run: int
    step: int
    words: str


def draw_chart(chart: Chart, steps: Scale, *, restarts: Sequence[Restart] = (), detail: int = 500) -> Markup:
    """Return a figure over `steps`. Each curve shows the extremes of at most `detail` parts. Pure."""
    smooth = chart.smooth and any(window(len(curve.series)) > 1 for curve in chart.curves)
    values = scale_of(
        [series for curve in chart.curves for series in (curve.series, curve.again, curve.points)],
        zero=chart.from_zero,
    )
    lines = [line for curve in chart.curves for line in _lines(curve, steps, values, detail=detail, smooth=smooth)]
    marks = [_restart(mark, steps) for mark in restarts]
    caption = tag("p", _caption(chart, values, smooth=smooth), class_="note")
    return frame(chart.title, [*marks, *lines], steps, values, caption, unit=chart.unit, label=_in_words(chart))


def frame(
    title: str, lines: Sequence[Markup], steps: Scale, values: Scale, *below: Markup, label: str, unit: str = ""
) -> Markup:
    """Return `lines` as a figure with its axes and `below`; `label` describes it to those who cannot see it."""
    svg = tag(
        "svg",
        *(_rule(values, value) for value in values.ticks()),
        *lines,
        viewBox=f"0 0 {GRID} {GRID}",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )
    words = [
        *(_label("y", 1 - int(values.place(np.array([value]))[0]) / GRID, value) for value in values.ticks()),
        *(_label("x", int(steps.place(np.array([value]))[0]) / GRID, value) for value in steps.ticks()),
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", title, tag("small", f" {unit}") if unit else None), tag("span", class_="value")),
        tag("div", tag("div", svg, class_="clip"), *words, class_="plot"),
        *below,
        class_="chart",
        data_x=json.dumps([steps.low, steps.high]),
        data_y=json.dumps([values.low, values.high, int(values.logarithmic)]),
    )


def _lines(curve: Curve, steps: Scale, values: Scale, *, detail: int, smooth: bool) -> Iterator[Markup]:
    kind = f"run c{curve.run % 8}"
    if len(curve.again):
        yield _path(thinned(curve.again, detail // 4 or 1), steps, values, curve, class_=f"{kind} again")
    if len(curve.series):
        raw = thinned(curve.series, detail)
        is_smoothed = smooth and window(len(curve.series)) > 1
        yield _path(raw, steps, values, curve, class_=f"{kind} {'raw' if is_smoothed else 'line'}")
        if is_smoothed:
            yield _path(smoothed(curve.series, detail), steps, values, curve, class_=f"{kind} line")
        bad = curve.series.nonfinite_steps[:_MARKED]
        yield from (_dot(int(step), "bad", steps, curve.run) for step in bad)
    if len(curve.points):
        shown = thinned(curve.points, detail // 4 or 1)
        yield _path(shown, steps, values, curve, class_=f"{kind} between")
        if len(shown) <= 200:
            yield _path(shown, steps, values, curve, class_=f"{kind} points", dots=True)


def _path(series: Series, steps: Scale, values: Scale, curve: Curve, *, class_: str, dots: bool = False) -> Markup:
    names = {"data_run": str(curve.run), "data_name": curve.name}
    return draw_path(series, steps, values, dots=dots, class_=class_, **names)


def draw_path(
    series: Series, steps: Scale, values: Scale, *within: Markup, dots: bool = False, **attributes: str
) -> Markup:
    """Return a line through a series, interrupted where a value is not finite or steps go back."""
    finite = np.isfinite(series.values)
    xs = steps.place(series.steps.astype(np.float64))
    ys = GRID - values.place(np.where(finite, series.values, values.low))
    gaps = np.diff(series.steps, prepend=-1) <= 0
    parts: list[str] = []
    begins = True
    for x, y, good, gap in zip(xs.tolist(), ys.tolist(), finite.tolist(), gaps.tolist(), strict=True):
        if not good:
            begins = True
            continue
        parts.append(f"M{x} {y} {x} {y}" if begins or gap or dots else f" {x} {y}")
        begins = False
    return tag("path", *within, d="".join(parts), **attributes)


def _dot(step: int, class_: str, steps: Scale, run: int) -> Markup:
    x = int(steps.place(np.array([float(step)]))[0])
    return tag("path", d=f"M{x} {_TOP} {x} {_TOP}", class_=class_, data_run=str(run), data_name="")


def _restart(mark: Restart, steps: Scale) -> Markup:
    x = int(steps.place(np.array([float(mark.step)]))[0])
    return tag(
        "path",
        tag("title", mark.words),
        d=f"M{x} 0 {x} {GRID}",
        class_=f"run c{mark.run % 8} restart",
        data_run=str(mark.run),
        data_name="",
    )


def _rule(values: Scale, value: float) -> Markup:
    y = GRID - int(values.place(np.array([value]))[0])
    return tag("path", d=f"M0 {y} {GRID} {y}", class_="rule")


def _label(axis: str, place: float, value: float) -> Markup:
    side = "top" if axis == "y" else "left"
    return tag("span", short(value, unit_from=1e3), class_=axis, style=f"{side}:{place * 100:.4g}%")


def _in_words(chart: Chart) -> str:
    """Return a description of the curves, for those who cannot see them."""
    return f"{chart.title} over steps. " + " ".join(_of_each(chart, _course))


def _course(curve: Curve) -> str:
    found = curve.series.finite if len(curve.series) else curve.points.finite
    if not len(found):
        return "no finite value"
    low, high = int(found.values.argmin()), int(found.values.argmax())
    return (
        f"from {short(found.values[0])} at step {found.steps[0]} to {short(found.values[-1])} at step "
        f"{found.steps[-1]}, lowest {short(found.values[low])} at step {found.steps[low]}, highest "
        f"{short(found.values[high])} at step {found.steps[high]}"
    )


def _of_each(chart: Chart, say: Callable[[Curve], str]) -> Iterator[str]:
    for curve in chart.curves:
        if words := say(curve):
            yield f"{curve.name}: {words}." if len(chart.curves) > 1 else f"{words[0].upper()}{words[1:]}."


def _caption(chart: Chart, values: Scale, *, smooth: bool) -> Markup:
    """Return how to read the figure: what was done to the values, and what it does not show."""
    said = []
    if smooth:
        widths = sorted({window(len(curve.series)) for curve in chart.curves} - {1})
        over = " or ".join(map(str, widths[:_LISTED])) if len(widths) <= _LISTED else f"{widths[0]} to {widths[-1]}"
        said.append(f"Faint: every value. Line: mean of {over} values around each.")
    if values.logarithmic:
        said.append("Logarithmic.")
    if any(len(curve.points) for curve in chart.curves) and any(len(curve.series) for curve in chart.curves):
        said.append(f"Dots: {chart.points_name}.")
    said += _of_each(chart, _without_value)
    return join(f"{words} " for words in said)


def _without_value(curve: Curve) -> str:
    steps = curve.series.nonfinite_steps
    if not len(steps):
        return ""
    listed = ", ".join(str(step) for step in steps[:_LISTED])
    more = f" and {len(steps) - _LISTED} more" if len(steps) > _LISTED else ""
    return f"not finite at step {listed}{more} (red marks)"
