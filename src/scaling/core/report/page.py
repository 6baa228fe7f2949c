"""One HTML file about one or several runs, which loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaling.core.config.base import BaseConfig
from scaling.core.errors import ConfigError
from scaling.core.report import facts
from scaling.core.report.axes import axes_of
from scaling.core.report.charts import further_charts, main_charts
from scaling.core.report.curves import Chart, Restart, draw_chart
from scaling.core.report.markup import Child, Markup, join, table, tag
from scaling.core.report.pictures import draw_run
from scaling.core.report.reading import CONFIG_FILE, Run
from scaling.core.report.scales import Scale
from scaling.core.report.settings import changed_settings, differing_settings
from scaling.core.report.statistics import draw_statistics
from scaling.core.report.timeline import draw_timeline

_POINTS: Final = 50_000
"""About so many values of each kind of line are drawn, over all curves together: a page stays below 2 MB."""
_DETAIL: Final = (40, 500)
_LISTED: Final = 200
_MAX_CONFIG: Final = 200_000
_AXES: Final = {"steps": "steps", "tokens": "tokens", "time": "training time"}


def report_page(runs: Sequence[Run], *, config_class: type[BaseConfig] | None = None) -> str:
    """Return the page. `config_class`, where it is known, has the defaults of the configurations.

    Whatever a run has written appears as text, never as markup, and the page forbids the browser to load anything.
    Pure.
    """
    with np.errstate(all="ignore"):  # values that are not finite, or become so, are drawn and reported as such
        return _page(runs, config_class)


def _page(runs: Sequence[Run], config_class: type[BaseConfig] | None) -> str:
    names = names_of([run.folder for run in runs])
    heads = [_coloured(index, name) for index, name in enumerate(names)] if len(runs) > 1 else [Markup()]
    sections = {
        "Summary": facts.summary(runs, heads),
        "End": _each(runs, names, [facts.bad_end(run) for run in runs]),
        "Curves": _curves(runs, names),
        "Statistics": _each(runs, names, draw_statistics(runs, _steps(runs))),
        "Attempts": _each(runs, names, [facts.attempts(run) for run in runs]),
        "Events": _each(runs, names, [facts.events(run) for run in runs]),
        "Layout": _each(runs, names, [draw_run(run) for run in runs]),
        "Timeline": _each(runs, names, [draw_timeline(run.profile) if run.profile else None for run in runs]),
        "Versions and hardware": facts.versions(runs, heads),
        "Configuration": _configuration(runs, names, heads, config_class),
        "Notes on the folder": _each(runs, names, [_notes(run) for run in runs]),
    }
    shown = {title: content for title, content in sections.items() if content}
    title = " and ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("nav", *(tag("a", name, href=f"#{_id(name)}") for name in shown))),
        tag("main", *(tag("section", tag("h2", name), content, id=_id(name)) for name, content in shown.items())),
        tag("script", Markup(_own("page.js"))),
        data_axes=json.dumps(axes_of(runs)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{_head(title)}{body}</html>\n'


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; equal paths are numbered. Pure."""
    paths = [folder.absolute().parts for folder in folders]
    names = []
    for index, parts in enumerate(paths):
        others = [other for place, other in enumerate(paths) if place != index]
        length = next((n for n in range(1, len(parts) + 1) if all(o[-n:] != parts[-n:] for o in others)), None)
        name = str(Path(*parts[-(length or 1) :]))
        names.append(name if length else f"{index + 1}: {name}")
    return names


def _head(title: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(_own("page.js").encode()).digest()).decode()
    policy = "; ".join(
        (
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            f"script-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Report: {title}"),
        tag("style", Markup(_own("page.css"))),
    )


def _own(name: str) -> str:
    """Return the text of a file of this package, as a part of the page."""
    return files(__name__.rpartition(".")[0]).joinpath(name).read_text(encoding="utf-8")


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _coloured(run: int, name: str) -> Markup:
    return tag("span", tag("i", class_=f"c{run % 8}"), name, class_="kind legend")


def _each(runs: Sequence[Run], names: Sequence[str], contents: Sequence[Markup | None]) -> Markup | None:
    """Return the content about each run, under the run's name where there are several runs."""
    found = [(name, content) for name, content in zip(names, contents, strict=True) if content]
    if len(runs) == 1 or not found:
        return found[0][1] if found else None
    return join([part for name, content in found for part in (tag("h3", name), content)])


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Markup | None:
    charts = main_charts(runs, names)
    further, left = further_charts(runs, names)
    if not charts and not further:
        return tag("p", "No step was finished: there are no curves.", class_="note")
    steps = _steps(runs)
    count = sum(len(chart.curves) for chart in (*charts, *further))
    detail = min(max(_POINTS // count, _DETAIL[0]), _DETAIL[1])
    restarts = [
        Restart(index, step, f"{name}: went on from step {step}")
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
        for step in run.restarts[-_LISTED:]
    ]

    def drawn(group: Sequence[Chart]) -> list[Markup]:
        return [draw_chart(chart, steps, restarts=restarts, detail=detail) for chart in group]

    parts: list[Child] = [_legend(names) if len(runs) > 1 else None, _controls(runs)]
    said = []
    if restarts:
        said.append("Dotted vertical lines: the run went on from a checkpoint.")
    if any(run.again for run in runs):
        said.append("Dashed: steps that came again after a restart, as they were the first time.")
    parts += [tag("p", " ".join(said), class_="note") if said else None, tag("div", *drawn(charts), class_="charts")]
    if further:
        inner = tag("div", *drawn(further), class_="charts further")
        note = None
        if left:
            more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
            note = tag("p", f"Not drawn, for there are too many: {', '.join(left[:_LISTED])}{more}", class_="note")
        parts.append(tag("details", tag("summary", f"Further metrics ({len(further) + len(left)})"), inner, note))
    return join(parts)


def _steps(runs: Sequence[Run]) -> Scale:
    """Return the range of steps of all runs: the axis that all figures share."""
    ends = [series.steps[[0, -1]] for run in runs for series in run.series.values() if len(series)]
    low, high = min((int(end[0]) for end in ends), default=0), max((int(end[1]) for end in ends), default=1)
    room = max(high - low, 1) / 100
    return Scale(low - room, high + room)


def _legend(names: Sequence[str]) -> Markup:
    boxes = [
        tag(
            "label",
            tag("input", type="checkbox", checked=True, hidden=True, data_toggle=str(index)),
            tag("i", class_=f"c{index % 8}"),
            name,
        )
        for index, name in enumerate(names)
    ]
    return tag("div", *boxes, class_="legend")


def _controls(runs: Sequence[Run]) -> Markup:
    """Return the choice of the axis, hidden until the script can act on it."""
    choices = [
        tag(
            "label", tag("input", type="radio", name="axis", value=axis, checked=axis == "steps"), f"over {_AXES[axis]}"
        )
        for axis in ("steps", *axes_of(runs))
    ]
    hint = tag("span", "drag to look closer, double-click for the whole", class_="note")
    return tag("fieldset", *choices, hint, class_="controls", hidden=True)


def _notes(run: Run) -> Markup | None:
    return tag("ul", *(tag("li", note) for note in run.notes)) if run.notes else None


def _configuration(
    runs: Sequence[Run], names: Sequence[str], heads: Sequence[Child], config_class: type[BaseConfig] | None
) -> Markup | None:
    """Return the settings that differ between the runs, then those of each run that differ from the defaults."""
    parts: list[Child] = []
    known = [run.config for run in runs if run.config is not None]
    if len(known) > 1:
        with_config = [head for run, head in zip(runs, heads, strict=True) if run.config is not None]
        rows = [(path, *values) for path, values in differing_settings(known)]
        parts.append(tag("h3", "What differs between the runs"))
        missing = tag("em", "not there")
        shown = [(path, *(missing if value is None else value for value in values)) for path, *values in rows]
        parts.append(table(["Setting", *with_config], shown, class_="settings") if rows else tag("p", "Nothing."))
    for run, name in zip(runs, names, strict=True):
        if run.config is not None:
            of = f" of {name}" if len(runs) > 1 else ""
            parts.append(_from_defaults(run, of, config_class, open_=len(runs) == 1))
            whole = tag("summary", f"All settings{of}: {CONFIG_FILE}")
            text, cut = run.config_text[:_MAX_CONFIG], len(run.config_text) > _MAX_CONFIG
            note = tag("p", f"The first {_MAX_CONFIG:,} characters.", class_="note") if cut else None
            parts.append(tag("details", whole, note, tag("pre", text, tabindex=0)))
    return join(parts) if parts else None


def _from_defaults(run: Run, of: str, config_class: type[BaseConfig] | None, *, open_: bool) -> Markup | None:
    if config_class is None or run.config is None:
        return None
    try:
        config = config_class.from_dict(run.config, quiet=True)
    except ConfigError as error:
        said = f"This version cannot read {CONFIG_FILE}{of}, so there is no comparison with the defaults: {error}"
        return tag("p", said, class_="note")
    rows: list[tuple[Any, ...]] = [(one.path, one.value, one.default) for one in changed_settings(config)]
    body = table(["Setting", "Value", "Default"], rows, class_="settings") if rows else tag("p", "Nothing.")
    return tag("details", tag("summary", f"What differs from the defaults{of} ({len(rows)})"), body, open=open_)
