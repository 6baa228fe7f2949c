"""Loading: how the data of a training are read. Needs no torch, so that a configuration can use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How data are read; this changes no number of the training."""

    workers: int = 0
    """Processes that prepare samples for each rank. 0: the training process does."""
    pin_memory: bool = True
    """Copy batches to the GPU from page-locked memory. Has no effect on the CPU."""
    prefetch_factor: int | None = None
    """Micro-batches each worker prepares ahead. None: 2."""
