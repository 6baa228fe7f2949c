"""Signals that reach a program before it handles them, during its imports: torch alone takes seconds to import.

Python leaves SIGUSR1 and SIGTERM to their default action, which ends a process as if it had crashed. A program calls
`listen_early` before it imports anything large; code that handles signals later replaces this handler.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_PREEMPTED = 75
"""ExitStatus.PREEMPTED; importing it would take the time that this module is meant to save."""
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def listen_early() -> None:
    """Let a request to leave end this process with the status that says so (75): there is nothing to save yet.

    Handlers that are already installed stay. Only for programs: importing a library must not change handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    free = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _leave)
    if free:
        _listen_while_blocked()


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_PREEMPTED)


def _listen_while_blocked() -> None:
    """Leave also while the main thread is blocked in a library and cannot run a handler."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if former != -1:  # other code is notified of signals this way
        signal.set_wakeup_fd(former)
        os.close(reader)
        os.close(writer)
        return
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a worker's signals are not its parent's

    def watch() -> None:
        while data := os.read(reader, 64):
            if any(number in data and signal.getsignal(number) is _leave for number in _SIGNALS):
                os._exit(_PREEMPTED)

    threading.Thread(target=watch, name="scaling-early-signals", daemon=True).start()
