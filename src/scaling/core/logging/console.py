"""Progress a person can read: one live line on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_log = logging.getLogger(__name__)

_REDRAW = 0.1
"""Seconds between two drawings of the live line."""


class ConsoleSink:
    """Show step, loss, speed and the time left. Evaluations get a line of their own that stays.

    Where standard error is not a terminal (or `may_draw` is False) the same goes to the log: the first and last step,
    and between them a line whenever a fiftieth of the time so far has passed, at most one a second.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        first_step: int = 0,
        may_draw: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._clock = clock
        self._start = (clock(), first_step)
        self._last_shown = float("-inf")
        self._progress: Progress | None = None
        if may_draw and sys.stderr.isatty():
            self._progress = Progress(
                BarColumn(bar_width=20),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                auto_refresh=False,
            )
            self._task = self._progress.add_task("", total=total_steps, completed=first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show one step."""
        if evaluation := _evaluation(metrics):
            _log.info("step %d/%d  %s", step, self._total, evaluation)
        text = self._describe(step, metrics)
        if text is None:
            return
        if self._progress is not None:
            self._progress.start()
            self._progress.update(self._task, completed=step, description=text, refresh=self._is_due(step, _REDRAW))
        elif self._is_due(step, self._pause()):
            _log.info(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _pause(self) -> float:
        """Return the seconds between two lines: a fiftieth of the time so far, at least 1, at most 60."""
        return min(max(1.0, (self._clock() - self._start[0]) / 50), 60.0)

    def _is_due(self, step: int, pause: float) -> bool:
        now = self._clock()
        if step < self._total and now - self._last_shown < pause:
            return False
        self._last_shown = now
        return True

    def _describe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        parts = [f"step {step}/{self._total}"]
        if (loss := metrics.get("training/loss")) is not None:
            parts.append(f"loss {loss:.4f}")
        is_now = False
        for unit in ("tokens", "samples"):
            if (speed := metrics.get(f"training/{unit}_per_second")) is not None:
                parts.append(f"{_thousands(speed)} {unit}/s")
                is_now = True  # a step without one was taken some time ago
        if len(parts) == 1:
            return None
        elapsed, done = self._clock() - self._start[0], step - self._start[1]
        if is_now and done > 0 and step < self._total:
            left = timedelta(seconds=round(elapsed / done * (self._total - step)))
            parts.append(f"{left} left")
        return "  ".join(parts)


def _evaluation(metrics: Mapping[str, float]) -> str:
    prefix = "evaluation/"
    shown = [(name[len(prefix) :], value) for name, value in metrics.items() if name.startswith(prefix)]
    return "evaluation: " + "  ".join(f"{name} {value:.4g}" for name, value in shown) if shown else ""


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
