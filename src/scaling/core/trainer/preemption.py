"""Preemption: notice that this process was asked to leave, so that the trainer can save first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

from scaling.core.errors import AskedToLeave
from scaling.core.topology.gate import NUDGE, Gate

SECOND_REQUEST_SECONDS = 0.5
"""Signals closer together are one request: Slurm signals every process of a job, and the launcher passes it on too."""


class Preemption:
    """A context that turns the first SIGTERM, SIGUSR1 or Ctrl-C into a flag; a second one ends the process at once.

    Signals do not arrive on all ranks at the same time: they are passed to a `gate`, through which the ranks agree. The
    gate also says which work a signal may interrupt, by `AskedToLeave`. Stay in the context until the state is saved.
    Outside the main thread, where Python allows no signal handlers, the flag is never set.
    """

    def __init__(
        self,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT),
        *,
        gate: Gate | None = None,
    ) -> None:
        self._signals = tuple(signals)
        self._gate = gate
        self._former: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._first: signal.Signals | None = None
        self._since = 0.0

    def __call__(self) -> bool:
        """Return whether this process was asked to leave."""
        return self._first is not None

    @property
    def reason(self) -> str | None:
        """Return the name of the signal that asked, such as `SIGTERM`; None while none did."""
        return None if self._first is None else self._first.name

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._former = {number: signal.signal(number, self._receive) for number in self._signals}
            if self._gate is not None:
                self._former[NUDGE] = signal.signal(NUDGE, self._break_off)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            # None stands for a handler that was not installed from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. No output here: the handler may interrupt a write to the very stream it would use."""
        if os.getpid() != self._process:  # a data-loading worker, forked with these handlers: it leaves with its parent
            return
        now = time.monotonic()
        if self._first is None:
            self._first, self._since = signal.Signals(number), now
            if self._gate is not None:
                self._gate.asked = self.reason
                self._break_off(number, frame)
        elif now - self._since >= SECOND_REQUEST_SECONDS:
            leave_by(number)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        gate = self._gate
        if os.getpid() == self._process and gate is not None and gate.interruptible and gate.leaves_now:
            raise AskedToLeave(gate.asked)


def leave_by(number: int) -> None:
    """End this process by the signal itself, so that whoever waits for it sees the conventional status."""
    signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(os.getpid(), number)
