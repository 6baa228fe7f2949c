"""Stillness: how long a thread has not moved, by its processor time and its marks, without reading its frames.

Interpreters have crashed because one thread took the frames of another again and again. A thread that sleeps, or waits
for a disk or a message, uses no processor time, and a thread that computes does: that is enough while nothing hangs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Final, final

from scaling.core.waiting import Marks, Wait

_SHARE: Final = 0.003
"""Share of the time that a thread may compute and still count as not moving: waking up takes 0.1 ms, reading or writing
a megabyte 1 ms."""


@final
class Stillness:
    """The time for which a thread has not moved, and the time for which it has waited in one call.

    `clock` reads the thread's processor time. `is_foreign` returns whether the thread is in a call of torch.distributed
    without a mark, such as one of a user's own; it is called only once the thread has done nothing at all for
    `patience` seconds.
    """

    def __init__(
        self, marks: Marks, clock: Callable[[], float], *, patience: float, is_foreign: Callable[[], bool]
    ) -> None:
        self.still = 0.0
        self.waited = 0.0
        self.since_question = 0.0
        self._marks = marks
        self._clock = clock
        self._patience = patience
        self._is_foreign = is_foreign
        self._former: tuple[Wait | None, int, float] = (None, 0, 0.0)
        self._idle = 0.0
        """Seconds without a mark and without any processor time: a thread that moves from one call to another uses
        some."""
        self._looked = 0.0
        """The value of `_idle` at the last look for a call without a mark."""
        self._foreign_from: float | None = None
        """The value of `_idle` at the last look before such a call was found; None: none is found."""

    def look(self, begun: int, passed: float) -> None:
        """Compare with the previous look, `passed` seconds ago.

        A waiting call is the same call as long as its mark is the same, however often it polls the store and however
        much processor time it uses: NCCL waits by computing.
        """
        wait, used = self._marks.innermost, self._clock()
        former, formerly_begun, formerly_used = self._former
        same = wait is former and begun == formerly_begun
        quiet = wait is not None or used - formerly_used <= _SHARE * passed
        self.still = self.still + passed if same and quiet else 0.0
        self._idle = self._idle + passed if same and wait is None and used == formerly_used else 0.0
        self.waited = self.still if wait is not None else self._foreign_seconds()
        self.since_question += passed
        self._former = wait, begun, used

    def _foreign_seconds(self) -> float:
        if self._idle < self._patience:
            self._looked, self._foreign_from = 0.0, None
            return 0.0
        if self._foreign_from is None and (
            not self._looked or self._idle - self._looked >= max(1.0, self._patience / 4)
        ):
            self._foreign_from = self._looked if self._is_foreign() else None
            self._looked = self._idle
        return 0.0 if self._foreign_from is None else self._idle - self._foreign_from


def processor_clock(thread: int) -> Callable[[], float]:
    """Return a function that reads the processor time of a thread of this process, which must be alive, in seconds.

    macOS reports that time only to the thread itself, so there the function reads the time of the process: a rank may
    seem to move while it does not, and messages then name it without the time for which it has not moved.
    """
    if sys.platform == "darwin":
        return time.process_time
    number = time.pthread_getcpuclockid(thread)
    last = 0.0

    def read() -> float:
        nonlocal last
        with contextlib.suppress(OSError):  # the thread has ended, and uses nothing any more
            last = time.clock_gettime(number)
        return last

    return read
