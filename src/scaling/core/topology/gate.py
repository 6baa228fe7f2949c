"""Gate: let all ranks stop after the same unit of work, without communication until one of them is asked to leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

from scaling.core.errors import AskedToLeave
from scaling.core.waiting import waits

NUDGE: Final = signal.SIGURG
"""Interrupts a blocking call of the training thread, so that it checks the gate; ignored where there is no handler."""


@final
class Gate:
    """Counter of the units of work (micro-batches, starts of steps) that this rank has begun; the same on all ranks.

    Once a rank is asked to leave, every rank promises to begin no further unit (`hold`), and all ranks stop after the
    last unit that any of them has begun (`close_after`). A separate thread gives the promise, whatever the training
    does, so the answer never depends on a rank that waits for it: no rank waits for ever. All ranks then complete the
    same units, and none waits for a message from a unit that another rank has skipped.

    The results of a global batch count only once a separate unit, after its micro-batches, is begun (`accept`). Where
    that unit is skipped, on all ranks, it does not matter from which data the preceding units were computed. So a rank
    does not wait for data that may never arrive: it uses other data, and lets the ranks that depend on it finish.

    A process that works alone (`shared` is False) stops where it is.
    """

    def __init__(self) -> None:
        self.shared = False
        """Whether other ranks have to be asked."""
        self.asked: str | None = None
        """The signal by which this process was asked to leave. A plain value, since a signal handler sets it."""
        self.interruptible = False
        """Whether the training is in an operation that a signal may interrupt: it loads, or waits for data."""
        self.begun = 0
        """The last unit that was begun; units count from 1."""
        self.step: int | None = None
        """The training step that the rank is at, for messages; None before the first."""
        self._reserved = 0
        self._acceptance = 0
        self._answer = threading.Condition()
        self._is_held = False
        self._last: int | None = None

    def reserve(self, count: int) -> int:
        """Reserve the next `count` units; return the number of the first."""
        first = self._reserved + 1
        self._reserved += count
        return first

    def reserve_batch(self, micro_batches: int) -> int:
        """Reserve a unit for each micro-batch of a global batch, and one to `accept` it; return the first number."""
        first = self.reserve(micro_batches + 1)
        self._acceptance = first + micro_batches
        return first

    def accept(self) -> None:
        """Let the results of the global batch count; raise `AskedToLeave`, on all ranks, where they do not.

        Call it once every rank has contributed to the results.
        """
        if self.shared and not self.admits(self._acceptance):
            raise AskedToLeave(self.asked)

    def is_new(self, unit: int) -> bool:
        """Return whether a unit has not been begun yet."""
        return unit > self.begun

    def admits(self, unit: int) -> bool:
        """Begin or continue a unit and return True; return False where it is to be skipped, here and on all ranks."""
        if unit <= self.begun:
            return True
        if not self.shared:
            if self.asked is not None:
                return False
            self.begun = unit
            return True
        with self._answer:
            if self._is_held and self._last is None:
                self._wait_for_answer()
            if self._last is not None and unit > self._last:
                return False
            self.begun = unit
            return True

    @waits
    def _wait_for_answer(self) -> None:
        """Wait until the last unit of all ranks is known. The caller holds `_answer`."""
        while self._last is None:
            self._answer.wait()

    def pass_through(self) -> None:
        """Begin a separate unit, where no work is unfinished; raise `AskedToLeave` where the unit is to be skipped."""
        if not self.admits(self.reserve(1)):
            raise AskedToLeave(self.asked)

    def hold(self) -> int:
        """Promise to begin nothing until `close_after`; return the last unit begun. Called from another thread."""
        with self._answer:
            self._is_held = True
            return self.begun

    def close_after(self, last: int) -> None:
        """Let no unit begin after `last`, the last that any rank has begun. Called from another thread."""
        with self._answer:
            self._last = last
            self._answer.notify_all()

    @property
    def leaves_now(self) -> bool:
        """Return whether the rank is to leave, and has finished its units or works on results that will not count."""
        if not self.shared:
            return self.asked is not None
        return self._last is not None and (self.begun >= self._last or self._last < self._acceptance)

    @contextmanager
    def interruption(self) -> Iterator[None]:
        """Let a signal interrupt the block with `AskedToLeave`, where the rank is to leave now."""
        self.interruptible = True
        try:
            if self.leaves_now:
                raise AskedToLeave(self.asked)
            yield
        except Exception as error:
            if not self._is_held:
                raise
            raise AskedToLeave(self.asked) from error  # others leave, and an error that this causes is no failure
        finally:
            self.interruptible = False
