"""When Python collects its garbage: at steps that all ranks reach together."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import final


@final
class _Collect:
    """A collector of Python's garbage at chosen steps, so that all ranks pause together."""

    def __init__(self, interval: int) -> None:
        self._interval = interval

    def __call__(self, step: int) -> None:
        if self._interval and step % self._interval == 0:
            gc.collect(1)


@contextlib.contextmanager
def garbage_collected(interval: int) -> Iterator[_Collect]:
    """Let the trainer control garbage collection inside the context: a full scan costs hundreds of milliseconds.

    Objects that survive the one full scan at the beginning are in the oldest generation, which is not scanned again.
    `interval` 0 leaves garbage collection to Python.
    """
    if interval and gc.isenabled():
        gc.collect()
        gc.disable()
        try:
            yield _Collect(interval)
        finally:
            gc.enable()
    else:
        yield _Collect(0)
