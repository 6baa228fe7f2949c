"""Gate: let all ranks stop after the same unit of work, without a word between them until one is asked to leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

from scaling.core.errors import AskedToLeave
from scaling.core.waiting import waits

NUDGE: Final = signal.SIGURG
"""Interrupts what the training thread is blocked in, so that it looks at the gate; ignored where nobody handles it."""


@final
class Gate:
    """Counts the units of work (micro-batches, beginnings of steps) that this rank has begun; all ranks count alike.

    Once a rank is asked to leave, each one promises to begin no unit beyond those it has begun (`hold`), and all of
    them stop after the last one that any of them has begun (`close_after`). Promises are given by a thread, whatever
    the training does, so the answer never depends on a rank that waits for it: nobody waits for ever. All ranks then
    carry out the same units to their end, and none waits for a message of one that another rank left out.

    The results of a global batch count only once a unit of its own, after its micro-batches, is begun (`accept`). Where
    that is left out, on all ranks, it does not matter from which data the units before were computed, so a rank does
    not wait for data that may never come: it takes others, and lets those finish that depend on it.

    A process that works alone, `shared` False, stops where it is.
    """

    def __init__(self) -> None:
        self.shared = False
        """Whether other ranks have to be asked."""
        self.asked: str | None = None
        """The signal by which this process was asked to leave. A plain value: a signal handler sets it."""
        self.interruptible = False
        """Whether the training does something that a signal may break off: it loads, or waits for data."""
        self.begun = 0
        """The last unit that was begun; units count from 1."""
        self.step: int | None = None
        """The training step that the rank is at, for people; None before the first."""
        self._reserved = 0
        self._acceptance = 0
        self._answer = threading.Condition()
        self._is_held = False
        self._last: int | None = None

    def reserve(self, count: int) -> int:
        """Return the number of the first of the next `count` units."""
        first = self._reserved + 1
        self._reserved += count
        return first

    def reserve_batch(self, micro_batches: int) -> int:
        """Return the number of the first unit of a global batch: a unit for each micro-batch, and one to `accept`."""
        first = self.reserve(micro_batches + 1)
        self._acceptance = first + micro_batches
        return first

    def accept(self) -> None:
        """Let the results of the global batch count; `AskedToLeave`, on all ranks, where they do not.

        Call it when every rank has had its part in them.
        """
        if self.shared and not self.admits(self._acceptance):
            raise AskedToLeave(self.asked)

    def is_new(self, unit: int) -> bool:
        """Return whether nothing of a unit has been begun."""
        return unit > self.begun

    def admits(self, unit: int) -> bool:
        """Begin a unit, or go on with it; False where it is to be left out, here and on all ranks."""
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
        """Wait for how far all have promised to go. While holding `_answer`."""
        while self._last is None:
            self._answer.wait()

    def pass_through(self) -> None:
        """Begin a unit of its own, at a place where nothing has to be finished; `AskedToLeave` where it is left out."""
        if not self.admits(self.reserve(1)):
            raise AskedToLeave(self.asked)

    def hold(self) -> int:
        """Promise to begin nothing before the answer is there; return the last unit that was begun. From a thread."""
        with self._answer:
            self._is_held = True
            return self.begun

    def close_after(self, last: int) -> None:
        """Let nothing begin after unit `last`, the last that any rank has begun. From a thread."""
        with self._answer:
            self._last = last
            self._answer.notify_all()

    @property
    def leaves_now(self) -> bool:
        """Whether the rank is to leave, and has finished what it had to or works on what will not count."""
        if not self.shared:
            return self.asked is not None
        return self._last is not None and (self.begun >= self._last or self._last < self._acceptance)

    @contextmanager
    def interruption(self) -> Iterator[None]:
        """Let a signal break off what is done inside by `AskedToLeave`, where the rank is to leave now."""
        self.interruptible = True
        try:
            if self.leaves_now:
                raise AskedToLeave(self.asked)
            yield
        except Exception as error:
            if not self._is_held:
                raise
            raise AskedToLeave(self.asked) from error  # others leave, and what is lost with them is no failure
        finally:
            self.interruptible = False
