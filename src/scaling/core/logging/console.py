"""Progress a person can read: one live line on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, final

from scaling.core.logging.line import fitted, plain, step_fields
from scaling.core.logging.live_line import LiveLine, is_terminal

_log = logging.getLogger(__name__)

_REDRAW: Final = 0.1
"""Seconds between two drawings of the live line."""


@final
class ConsoleSink:
    """Sink of steps after which the trainer has waited for the device: shows loss, speed, memory, time left and more.

    Where standard error is not a terminal (or `may_draw` is False) steps go to the log as `name value` pairs: the first
    and the last step, and between them one step after each pause of a fiftieth of the time so far, at most one a second
    and at least one a minute. Evaluations, checkpoints and failures have their own lines (`EventLog`).
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
        self._live = LiveLine() if may_draw and is_terminal(sys.stderr) else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show one step. A step without a speed is left out: it was taken some time ago, and a newer one follows."""
        if not ({"training/tokens_per_second", "training/samples_per_second"} & metrics.keys()):
            return
        if not self._is_due(step, self._pause() if self._live is None else _REDRAW):
            return
        fields = step_fields(step, self._total, metrics, seconds_left=self._seconds_left(step))
        if self._live is None:
            _log.info(plain(fields))
        else:
            self._live.draw(fitted(fields, self._live.width))

    def close(self) -> None:
        """Leave the terminal as it was, below the last line."""
        if self._live is not None:
            self._live.close()
            self._live = None

    def _pause(self) -> float:
        """Return the seconds between two lines: a fiftieth of the time so far, at least 1, at most 60."""
        return min(max(1.0, (self._clock() - self._start[0]) / 50), 60.0)

    def _is_due(self, step: int, pause: float) -> bool:
        now = self._clock()
        if step < self._total and now - self._last_shown < pause:
            return False
        self._last_shown = now
        return True

    def _seconds_left(self, step: int) -> float | None:
        elapsed, done = self._clock() - self._start[0], step - self._start[1]
        return elapsed / done * (self._total - step) if done > 0 and step < self._total else None
