"""Signals that reach a program while it is still being imported, which torch alone makes take seconds.

Python leaves SIGUSR1 and SIGTERM to their default action, which ends a process as if it had crashed. A program calls
`listen` before it imports anything large; whoever handles signals later, as the trainer does, replaces this handler.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_PREEMPTED = 75
"""ExitStatus.PREEMPTED; importing it would take what this module is to save."""


def listen() -> None:
    """End this process, if it is asked to leave, with the status that says so: there is nothing to save yet."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_PREEMPTED)
