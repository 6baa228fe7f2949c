"""Tokens and training time at the steps of each run, so that a figure can be drawn over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from scaling.core.report.charts import DURATION, TOKENS
from scaling.core.report.reading import Run
from scaling.core.report.series import Series

_POINTS: Final = 200
_LONGEST: Final = 1e7
"""Seconds of a step. Nobody waits that long, so a larger value is a fault."""


def training_time(run: Run) -> Series | None:
    """Return the seconds of training up to each step: the sum of the steps' durations, without the time between."""
    durations = run.series.get(DURATION)
    if durations is None or not len(durations):
        return None
    steps = np.diff(durations.steps, prepend=0)
    # A run resumed from another run's checkpoint, or a file that begins late, has no time before its first line.
    interval = int(steps[1:].min()) if len(steps) > 1 else 1
    steps[0] = min(int(steps[0]), interval)
    seconds = np.clip(np.nan_to_num(durations.values, posinf=0.0), 0.0, _LONGEST)
    return Series(durations.steps, np.cumsum(seconds * steps))


def axes_of(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return a table of each run, for tokens and for time: some steps and their values.

    An axis that some run knows nothing about is left out.
    """
    tables = {
        "tokens": [_table(run.series.get(TOKENS)) for run in runs],
        "time": [_table(training_time(run)) for run in runs],
    }
    return {axis: found for axis, found in tables.items() if all(found)}


def _table(series: Series | None) -> list[list[float]]:
    found = series.finite if series is not None else None
    if found is None or not len(found):
        return []
    chosen = np.unique(np.linspace(0, len(found) - 1, num=min(_POINTS, len(found))).astype(np.int64))
    return [found.steps[chosen].tolist(), [float(f"{value:.6g}") for value in found.values[chosen].tolist()]]
