"""Statistics of tensors as figures: one for each kind of tensor and statistic, with a thin line per tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scaling.core.report.curves import draw_path, frame
from scaling.core.report.markup import Markup, join, tag
from scaling.core.report.reading import Run
from scaling.core.report.scales import Scale, scale_of
from scaling.core.report.series import Series, thinned

_KINDS: Final[Mapping[str, str]] = {
    "parameters": "Parameters",
    "parameter_gradients": "Gradients of parameters",
    "activations": "Activations",
    "activation_gradients": "Gradients of activations",
}
_KEY: Final = re.compile(rf"statistics/({'|'.join(_KINDS)})/(.+)/([^/]+)", re.DOTALL)
_MAX_LINES: Final = 64
_ALL_LINES: Final = 2400
_FEWEST_LINES: Final = 8
_MAX_FIGURES: Final = 300
"""Limits for a figure and for all figures of a page, which stays below 2 MB."""
_POINTS: Final = 30_000
_DETAIL: Final = (8, 200)
"""The lines of all figures share `_POINTS` parts; each line has at least and at most so many, and shows the extremes
of each."""
_NAMED: Final = 6
"""A figure with at most so many lines has a legend; otherwise a name appears where the reader points at a line."""
_LISTED: Final = 3
_FIRST_HUE, _LAST_HUE = 220, 380  # from blue over violet to orange: all can be seen on white and on black


@dataclass(frozen=True)
class Statistic:
    """The parts of a metric's name: the kind of tensor, the tensor, and the statistic."""

    kind: str
    tensor: str
    statistic: str

    @property
    def layer(self) -> int | None:
        """The first number in the name of the tensor."""
        return next((int(part) for part in self.tensor.split(".") if re.fullmatch("[0-9]{1,9}", part)), None)


def statistic_of(metric: str) -> Statistic | None:
    """Return the parts of `statistics/<kind>/<tensor>/<statistic>`; None for a metric of another form."""
    found = _KEY.fullmatch(metric)
    return Statistic(*found.groups()) if found else None


def draw_statistics(runs: Sequence[Run], steps: Scale) -> list[Markup | None]:
    """Return the figures of each run over `steps`, folded by kind; None for a run without statistics. Pure."""
    groups = [_grouped(run) for run in runs]
    figures = sum(map(len, groups))
    most = min(max(_ALL_LINES // max(figures, 1), _FEWEST_LINES), _MAX_LINES)
    lines = sum(min(len(group), most) for of_run in groups for group in of_run.values())
    detail = min(max(_POINTS // max(lines, 1), _DETAIL[0]), _DETAIL[1])
    room = max(_MAX_FIGURES // len(runs), 1)
    return [_of_run(run, index, groups[index], steps, most, detail, room) for index, run in enumerate(runs)]


Groups = dict[tuple[str, str], list[tuple[Statistic, str]]]
"""Tensors with their metrics, by (kind, statistic)."""


def _grouped(run: Run) -> Groups:
    found: Groups = {}
    for metric in run.series:
        if (one := statistic_of(metric)) is not None:
            found.setdefault((one.kind, one.statistic), []).append((one, metric))
    return {
        key: sorted(found[key], key=lambda pair: (pair[0].layer is not None, pair[0].layer or 0, pair[0].tensor))
        for key in sorted(found, key=lambda key: (list(_KINDS).index(key[0]), key[1]))
    }


def _of_run(run: Run, index: int, groups: Groups, steps: Scale, most: int, detail: int, room: int) -> Markup | None:
    if not groups:
        return None
    parts = []
    left = list(groups)[room:]
    for kind, title in _KINDS.items():
        drawn = [
            _draw(statistic, [(one, run.series[metric]) for one, metric in group], index, steps, most, detail)
            for (of, statistic), group in list(groups.items())[:room]
            if of == kind
        ]
        if drawn:
            summary = tag("summary", f"{title} ({len(drawn)})")
            parts.append(tag("details", summary, tag("div", *drawn, class_="charts further")))
    if left:
        named = ", ".join(f"{statistic} of {kind}" for kind, statistic in left)
        parts.append(tag("p", f"Not drawn, for there are too many: {named}", class_="note"))
    return join(parts)


def _draw(
    statistic: str, group: Sequence[tuple[Statistic, Series]], run: int, steps: Scale, most: int, detail: int
) -> Markup:
    chosen = [group[place] for place in np.unique(np.linspace(0, len(group) - 1, num=most).round().astype(int))]
    last = max((one.layer or 0 for one, _ in group), default=0)
    values = scale_of([series for _, series in chosen])
    lines = [
        draw_path(
            thinned(series, detail),
            steps,
            values,
            tag("title", one.tensor),
            class_="run tensor",
            style=_colour(one.layer, last),
            data_run=str(run),
            data_name="",
        )
        for one, series in chosen
    ]
    notes = tag("p", " ".join(_notes(chosen, len(group), values)), class_="note")
    words = f"{statistic} over steps, of {', '.join(one.tensor for one, _ in chosen[:_LISTED])}"
    more = f" and {len(chosen) - _LISTED} more" if len(chosen) > _LISTED else ""
    named = [(one.tensor, _colour(one.layer, last)) for one, _ in chosen] if len(group) <= _NAMED else []
    legend = [tag("span", tag("i", style=colour), name, class_="kind") for name, colour in named]
    below = tag("div", *legend, class_="legend note") if legend else Markup()
    return frame(statistic, lines, steps, values, below, notes, label=f"{words}{more}")


def _colour(layer: int | None, last: int) -> str:
    """Return the style of a line: its colour depends on the layer, and is grey without one."""
    if layer is None:
        return "--c:var(--c7)"
    hue = round(_FIRST_HUE + (_LAST_HUE - _FIRST_HUE) * layer / max(last, 1)) % 360
    return f"--c:hsl({hue} 65% 52%)"


def _notes(chosen: Sequence[tuple[Statistic, Series]], count: int, values: Scale) -> Iterator[str]:
    if count > len(chosen):
        yield f"{len(chosen)} of {count} tensors, evenly chosen."
    if len({one.layer for one, _ in chosen}) > 1:
        yield "From the first layer, blue, to the last, orange."
    if values.logarithmic:
        yield "Logarithmic."
    bad = [(one.tensor, series.nonfinite_steps[0]) for one, series in chosen if len(series.nonfinite_steps)]
    if bad:
        named = ", ".join(f"{tensor} from step {step} on" for tensor, step in bad[:_LISTED])
        yield f"Not always finite: {named}{f' and {len(bad) - _LISTED} more' if len(bad) > _LISTED else ''}."
