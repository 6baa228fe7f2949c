"""Tables about runs: how they went and ended, their attempts and events, versions and hardware."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from scaling.core.logging.run_state import RunPhase
from scaling.core.report.axes import training_time
from scaling.core.report.charts import EVALUATION_LOSS, LOSS, MEMORY, SAMPLES_PER_SECOND, TOKENS, TOKENS_PER_SECOND
from scaling.core.report.markup import Child, Markup, join, table, tag
from scaling.core.report.numbers import between, duration, short
from scaling.core.report.reading import Run
from scaling.core.report.settings import shown_value

_MAX_EVENTS: Final = 100
_QUIET: Final = frozenset({"evaluation"})
"""Events that the figures show already."""
_FREQUENT: Final = frozenset({"checkpoint"})
"""Events of which only the last is shown, with their number."""


def summary(runs: Sequence[Run], names: Sequence[Child]) -> Markup:
    """Return a table of how each run went."""
    rows: dict[str, Sequence[Child]] = {
        "State": [state_of(run) for run in runs],
        "Steps": [_steps(run) for run in runs],
        "Tokens": [_last(run, TOKENS) for run in runs],
        "Training time": [_time(run) for run in runs],
        "Tokens per second": [_median(run, TOKENS_PER_SECOND) for run in runs],
        "Samples per second": [_median(run, SAMPLES_PER_SECOND) for run in runs],
        "Last loss": [_last(run, LOSS) for run in runs],
        "Last evaluation loss": [_last(run, EVALUATION_LOSS) for run in runs],
        "Best evaluation loss": [_best(run, EVALUATION_LOSS) for run in runs],
        "Peak memory": [_memory(run) for run in runs],
        "Layout": [_layout(run) for run in runs],
        "Folder": [str(run.folder) for run in runs],
    }
    shown = [(name, *values) for name, values in rows.items() if any(value is not None for value in values)]
    return table(["", *names], shown, class_="facts")


def state_of(run: Run) -> Markup:
    """Return the state of a run in a few words."""
    state = run.state
    if state is None:
        return tag("span", "not known", class_="state")
    status = f", status {state.exit_status}" if state.exit_status else ""
    match state.state:
        case RunPhase.RUNNING:
            words = f"running, as of step {run.last_step} (a run that was killed as a whole says so too)"
        case RunPhase.FINISHED:
            words = f"finished at step {state.step}"
        case RunPhase.PREEMPTED:
            words = f"pre-empted at step {state.step}{status}: the same command goes on from there"
        case RunPhase.FAILED:
            words = f"failed after step {state.step}{status}"
    return tag("span", words, class_=f"state {state.state.name.lower()}")


def bad_end(run: Run) -> Markup | None:
    """Return why a run has stopped and the last lines of its log; None where it has ended well or is running."""
    if run.state is None or run.state.state not in (RunPhase.FAILED, RunPhase.PREEMPTED):
        return None
    parts = [tag("p", run.state.reason or "No reason was written down.", class_="reason")]
    if run.last_words is not None:
        parts.append(tag("p", f"The last lines of {run.last_words.file}:", class_="note"))
        parts.append(tag("pre", "\n".join(run.last_words.lines), tabindex=0))
    return join(parts)


def attempts(run: Run) -> Markup | None:
    """Return a table of the attempts of a run's last command."""
    rows = []
    for attempt in run.attempts:
        seconds = between(attempt.get("started"), attempt.get("ended"))
        rows.append(
            (
                attempt.get("attempt"),
                _time_of(attempt.get("started")),
                None if seconds is None else tag("span", duration(seconds), class_="time"),
                attempt.get("status"),
                " on ".join(str(value) for value in (attempt.get("reason"), attempt.get("host")) if value) or "done",
            )
        )
    return table(["Attempt", "Started", "Took", "Exit status", "How it ended"], rows) if rows else None


def events(run: Run) -> Markup | None:
    """Return a table of the events that the figures do not show."""
    kinds = Counter(str(event.get("event")) for event in run.events)
    last = {str(event.get("event")): index for index, event in enumerate(run.events)}
    told = [
        event
        for index, event in enumerate(run.events)
        if (kind := str(event.get("event"))) not in _QUIET and (kind not in _FREQUENT or last[kind] == index)
    ]
    if not told:
        return None
    left = max(len(told) - _MAX_EVENTS, 0)
    rows = []
    for event in (*told[: _MAX_EVENTS // 2], *told[_MAX_EVENTS // 2 + left :]):
        kind = str(event.get("event"))
        count = f" (the last of {kinds[kind]})" if kind in _FREQUENT and kinds[kind] > 1 else ""
        details = {name: value for name, value in event.items() if name not in ("time", "step", "event")}
        said = "; ".join(f"{name} {_told(value)}" for name, value in details.items() if value is not None)
        rows.append((_time_of(event.get("time")), event.get("step"), kind.replace("_", " ") + count, said))
    note = (
        tag("p", f"Left out in the middle: {left:,} events. All are in events.jsonl.", class_="note") if left else None
    )
    return join([table(["Time", "Step", "Event", ""], rows), note])


def versions(runs: Sequence[Run], names: Sequence[Child]) -> Markup | None:
    """Return a table of versions, hardware, layout and data. Values that differ between runs are in bold."""
    shown = [dict(_flat({key: run.about.get(key) for key in _ABOUT})) for run in runs]
    rows = []
    for path in dict.fromkeys(path for values in shown for path in values):
        values = [about.get(path) for about in shown]
        differ = len(set(values)) > 1 and path != "started"
        rows.append((path, *(tag("strong", value) if differ else value for value in values)))
    return table(["", *names], rows, class_="facts") if rows else None


_ABOUT: Final = ("started", "versions", "git", "hardware", "layout", "data_fingerprint", "config_digest")


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name} ")
        elif value is not None and value != []:
            yield f"{path}{name}".replace("_", " "), _about(name, value)


def _about(name: str, value: Any) -> str:
    if name == "memory_bytes" and isinstance(value, int):
        return f"{value / 2**30:,.1f} GiB"
    if isinstance(value, list):
        return ", ".join(f"{count} x {item}" for item, count in Counter(map(str, value)).items())
    return str(value)


def _time_of(value: object) -> Markup:
    """Return a time, given as files have it, in a readable form."""
    return tag("span", str(value).replace("T", " ").replace("+00:00", " UTC"), class_="time")


def _told(value: Any) -> str:
    if isinstance(value, float):
        return short(value)
    return value if isinstance(value, str) else json.dumps(value)


def _steps(run: Run) -> str:
    trainer = (run.config or {}).get("trainer")
    given = trainer.get("train_iterations") if isinstance(trainer, dict) else None
    return f"{run.last_step:,} of {given:,}" if isinstance(given, int) else f"{run.last_step:,}"


def _last(run: Run, metric: str) -> str | None:
    series = run.series.get(metric)
    return short(series.values[-1]) if series is not None and len(series) else None


def _median(run: Run, metric: str) -> str | None:
    series = run.series.get(metric)
    found = series.finite.values if series is not None else ()
    return f"{short(float(np.median(found)))} (median)" if len(found) else None


def _best(run: Run, metric: str) -> str | None:
    series = run.series.get(metric)
    found = series.finite if series is not None else None
    if found is None or not len(found):
        return None
    best = int(found.values.argmin())
    return f"{short(found.values[best])} at step {found.steps[best]}"


def _memory(run: Run) -> str | None:
    series = run.series.get(MEMORY)
    found = series.finite.values if series is not None else None
    return None if found is None or not len(found) else f"{short(float(found.max()) / 2**30)} GiB"


def _time(run: Run) -> str | None:
    series = training_time(run)
    return None if series is None else f"{duration(float(series.values[-1]))} in steps"


def _layout(run: Run) -> str | None:
    layout = run.about.get("layout")
    if not isinstance(layout, dict):
        return None
    return " x ".join(f"{name} {shown_value(size)}" for name, size in layout.items())
