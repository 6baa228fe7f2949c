"""Signals that reach a program before anybody handles them: while it is imported, which torch alone makes take seconds.

Python leaves SIGUSR1 and SIGTERM to their default action, which ends a process as if it had crashed. A program calls
`listen_early` before it imports anything large; whoever handles signals later replaces this handler.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_PREEMPTED = 75
"""ExitStatus.PREEMPTED; importing it would take what this module is to save."""
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def listen_early() -> None:
    """End this process, if it is asked to leave, with the status that says so: there is nothing to save yet.

    Whoever handles these signals already goes on doing so. Only for programs: importing a library changes no handler.
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
    """Leave also where the main thread waits for others in a library, and gets to no handler."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if former != -1:  # somebody else is told of signals this way
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
