"""Advice on what to try after a failure whose message gives none, unlike those of this library."""

from __future__ import annotations

import signal
from typing import Final

_LESS_MEMORY: Final = "lower topology.micro_batch_size, or set topology.activation_checkpointing_type to every_layer"


def remedy_of_error(error: BaseException) -> str:
    """Return what to try after an exception that nobody raised on purpose."""
    name, text = type(error).__name__, str(error).lower()
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "out of memory" in text:
        return _LESS_MEMORY
    if isinstance(error, ImportError):
        return "install what is missing into the environment of that rank"
    if isinstance(error, ConnectionError) or name.startswith("Dist"):
        return "another rank is gone or cannot be reached; its own log, or that of its host, says why"
    return "the traceback above names the line that failed"


def remedy_of_signal(number: int) -> str:
    """Return what to try after a signal has ended a process."""
    if number == signal.SIGKILL:
        return f"{_LESS_MEMORY}; data workers (trainer.dataloader_num_workers) take memory, too"
    if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return "a library crashed; what it printed last says where"
    return "find out who sent the signal"


REMEDY_OF_LOST_HOST: Final = "look at that machine, or leave it out of runner.hosts"
"""What to try after a machine is gone."""
