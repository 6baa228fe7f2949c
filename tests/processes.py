"""Wait for what other processes do, and see whether they are still there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], bool], otherwise: str, *, seconds: float = 60.0) -> None:
    """Return as soon as `condition` holds; fail with `otherwise` where it never does.

    The time is for what never comes. A busy machine may leave any process without a core for many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return whether a process is there and not a zombie that its parent has yet to collect."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:  # by the signal, or where it ends while its file is open
        return False
    except FileNotFoundError:  # it has ended, or this system shows no processes as files
        return not Path("/proc/self/stat").exists()
    return state != "Z"


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started and those that these have, while they are there."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            found += [child, *descendants(child)]
    return found
