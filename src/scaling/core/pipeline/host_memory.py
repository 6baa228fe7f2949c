"""Keep the C library from holding on to unused memory, on a CPU, where every activation is a block of its heap.

Blocks of changing size fragment glibc's heap, and its thresholds for giving memory back adapt upwards: a training whose
tensors are all freed grew by megabytes with each step. A small fixed threshold would stop that, but each large tensor
would then be mapped and cleared anew, at 1.4 times the time of a step. So both thresholds are fixed high, and free
pages inside the heap are given back as soon as passes hold more than the first pass after the last trim did. Memory
that each pass allocates again is not growth: giving it back would cost more than it saves.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Final, final

import torch

MMAP_THRESHOLD: Final = 32 * 2**20
"""Bytes from which a block is mapped by itself; the highest value to which glibc itself would adapt the threshold."""
TRIM_THRESHOLD: Final = 64 * 2**20
"""Free bytes at the end of the heap that are kept."""
PASSES: Final = 5
"""Least number of passes between two trims."""
GROWTH: Final = 1.02
"""Resident memory relative to the first pass after the last trim, up to which nothing is given back."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@final
class HostMemory:
    """Gives free memory of this process back to the system. Does nothing without glibc, or where a GPU computes.

    The thresholds are the process's; those that the environment sets (`MALLOC_...`, `GLIBC_TUNABLES`) are respected.
    """

    def __init__(self, device: torch.device) -> None:
        libc = ctypes.CDLL(None) if device.type == "cpu" and os.name == "posix" else None
        self._trim: Callable[[int], Any] | None = getattr(libc, "malloc_trim", None)  # glibc's alone
        self._passes = 0
        """Passes since the last trim."""
        self._usual = 0
        """Resident bytes after the first of these passes."""
        tuned = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in _SET_BY_USER)
        if self._trim is not None and libc is not None and not tuned:
            libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
            libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)

    def after_pass(self) -> None:
        """Note that a pass over a batch is done; now and then, give back freed memory."""
        if self._trim is None:
            return
        self._passes += 1
        if self._passes == 1:
            self._usual = resident_bytes()
        elif self._passes >= PASSES and resident_bytes() > GROWTH * self._usual:
            self._trim(0)
            self._passes = 0


def resident_bytes() -> int:
    """Return how much memory of this process is resident (Linux)."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
