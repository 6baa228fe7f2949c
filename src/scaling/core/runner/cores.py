"""The number of cores available to this process and to those that it starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")
"""Holds the microseconds of processor time, or `max`, that a container may use in a period, and the period."""


def available_cores(quota_file: Path = QUOTA_FILE) -> int:
    """Return how many cores this process may use: those it is bound to, fewer where a container has a quota of time."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or the word `max` for no quota
        quota, period = quota_file.read_text(encoding="utf-8").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores
