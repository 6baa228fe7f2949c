"""The summary of a training that has ended well: at most eight lines, from the metrics of this start."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from scaling.core.logging.line import clock_time, with_thousands

MAX_LINES: Final = 8

_AVERAGED: Final = ("tokens_per_second", "samples_per_second", "mfu", "data_wait_fraction")
"""Metrics that each cover several steps; the summary shows their mean over all steps."""


@dataclass
class _Series:
    """The last and the lowest value of a loss."""

    last: tuple[int, float] | None = None
    best: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        self.last = (step, value)
        if math.isfinite(value) and (self.best is None or value < self.best[1]):
            self.best = (step, value)

    def describe(self) -> str | None:
        if self.last is None:
            return None
        text = f"{self.last[1]:.4f} after step {self.last[0]}"
        if self.best is not None and self.best[0] != self.last[0]:
            text += f", at its best {self.best[1]:.4f} after step {self.best[0]}"
        return text


@final
class Summary:
    """A sink of metrics that keeps the values for the summary at the end."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin(0)
        self._tokens: float | None = None
        self._training, self._evaluation = _Series(), _Series()
        self._seconds = 0.0
        self._sums: defaultdict[str, float] = defaultdict(float)

    def begin(self, first_step: int) -> None:
        """Begin to measure time; the steps up to `first_step` were taken by an earlier start."""
        self._began = self._clock()
        self._first_step = self._step = self._measured_step = first_step

    @property
    def steps(self) -> int:
        """Return the number of steps that this start has trained."""
        return self._step - self._first_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._step = max(self._step, step)
        self._tokens = metrics.get("training/consumed_tokens", self._tokens)
        for name, series in (("training", self._training), ("evaluation", self._evaluation)):
            if (loss := metrics.get(f"{name}/loss")) is not None:
                series.add(step, loss)
        if (duration := metrics.get("training/step_duration")) is not None:
            seconds = duration * (step - self._measured_step)
            self._measured_step = step
            self._seconds += seconds
            for name in _AVERAGED:
                self._sums[name] += metrics.get(f"training/{name}", 0.0) * seconds

    def close(self) -> None:
        """Keep everything: the summary is made after the last metrics."""

    def lines(
        self, *, outcome: str, checkpoint: Path | None, log_dir: Path | None, next_commands: Sequence[str]
    ) -> list[str]:
        """Return the lines of the summary, each a name and a text.

        `outcome` is the first word, such as "finished". As many of `next_commands` are shown as there is room for.
        """
        rows = [
            (outcome, self._progress()),
            ("speed", self._speed()),
            ("loss", self._training.describe()),
            ("evaluation", self._evaluation.describe()),
            ("checkpoint", None if checkpoint is None else str(checkpoint)),
            ("files", None if log_dir is None else str(log_dir)),
        ]
        named = [(name, text) for name, text in rows if text is not None]
        for index, command in enumerate(next_commands[: MAX_LINES - len(named)]):
            named.append(("next" if index == 0 else "", command))
        width = max(len(name) for name, _ in named)
        return [f"{name:<{width}}  {text}" for name, text in named]

    def _progress(self) -> str:
        parts = [f"{self._step} steps"]
        if self._tokens is not None:
            parts.append(f"{with_thousands(self._tokens)} tokens")
        took = clock_time(self._clock() - self._began)
        parts.append(took if self._first_step == 0 else f"{self.steps} of the steps in this start, in {took}")
        return ", ".join(parts)

    def _speed(self) -> str | None:
        if self._seconds <= 0:
            return None
        mean = {name: total / self._seconds for name, total in self._sums.items() if total}
        parts = [
            f"{with_thousands(mean[f'{unit}_per_second'])} {unit}/s"
            for unit in ("tokens", "samples")
            if f"{unit}_per_second" in mean
        ]
        steps = self._measured_step - self._first_step
        parts.append(f"{self._seconds / steps:.3g} s a step")
        if "mfu" in mean:
            parts.append(f"mfu {100 * mean['mfu']:.1f} %")
        parts.append(f"{100 * mean.get('data_wait_fraction', 0.0):.0f} % of it waiting for data")
        return ", ".join(parts)
