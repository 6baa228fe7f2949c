"""Profiler: what this process did and for how long, without making the host wait for the device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import torch

_MICROSECONDS: Final = 1e6


@dataclass(frozen=True)
class Span:
    """One thing that was done, in seconds of the wall clock."""

    name: str
    category: str
    start: float
    duration: float

    def trace_event(self, *, process: int) -> dict[str, Any]:
        """Return the span in the trace event format that Perfetto and chrome://tracing read."""
        return {
            "ph": "X",
            "name": self.name,
            "cat": self.category,
            "pid": 0,
            "tid": process,
            "ts": self.start * _MICROSECONDS,
            "dur": self.duration * _MICROSECONDS,
        }


@dataclass(frozen=True)
class _Recorded:
    name: str
    category: str
    begin: Any
    end: Any


@final
class Profiler:
    """Times stretches of code. On a GPU by events in its stream, read only when the spans are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorded: list[_Recorded] = []
        self._wall_zero = time.time()
        self._zero = self._now()

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def record(self, name: str, category: str) -> Iterator[None]:
        """Record what happens inside the context."""
        begin = self._now()
        try:
            yield
        finally:
            self._recorded.append(_Recorded(name, category, begin, self._now()))

    def spans(self) -> list[Span]:
        """Return everything recorded, and forget it. On a GPU this waits for the device."""
        recorded, self._recorded = self._recorded, []
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [
            Span(
                one.name,
                one.category,
                self._wall_zero + self._seconds(self._zero, one.begin),
                self._seconds(one.begin, one.end),
            )
            for one in recorded
        ]

    def _seconds(self, begin: Any, end: Any) -> float:
        if self._device.type == "cuda":
            return float(begin.elapsed_time(end)) / 1e3
        return float(end - begin)
