"""Profiler: record what this process does and for how long, without making the host wait for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, final

import torch


@dataclass(frozen=True)
class Span:
    """A recorded activity, in seconds of the host's clock."""

    name: str
    category: str
    start: float
    duration: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further facts about the activity, as JSON values."""
    under_way: bool = False
    """Whether the process did something else meanwhile, so that spans may overlap without nesting."""

    @property
    def end(self) -> float:
        """Return when the activity ended."""
        return self.start + self.duration


@final
class Profiler:
    """A timer of stretches of code. On a GPU it uses events in the current stream, read only by `spans`.

    Create it when recording begins: on a GPU the constructor waits for the device, to relate its clock to the host's.
    May be called in any thread.
    """

    def __init__(self, device: torch.device, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._host_now = device, now
        self._recorded: list[_Recorded] = []
        self.common: Mapping[str, Any] = {}
        """Arguments added to everything recorded from now on."""
        self._zero, self._zero_at, self.uncertainty = self._anchor()

    def now(self) -> Any:
        """Return a mark of this moment; on a GPU, of this point in the work queued on the device."""
        if self._device.type != "cuda":
            return self._host_now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def record(self, name: str, category: str, **arguments: Any) -> AbstractContextManager[None]:
        """Return a context manager that records the time spent inside it."""
        return _Recording(self, name, category, arguments)

    def add(
        self,
        name: str,
        category: str,
        begin: Any,
        end: Any,
        *,
        arguments: Mapping[str, Any],
        under_way: bool = False,
    ) -> None:
        """Record an activity between two marks."""
        self._recorded.append(_Recorded(name, category, begin, end, {**self.common, **arguments}, under_way))

    def spans(self) -> list[Span]:
        """Return everything recorded, and forget it. On a GPU this waits for the device."""
        recorded, self._recorded = self._recorded, []
        seconds = self._seconds()
        return [
            Span(one.name, one.category, begin, seconds(one.end) - begin, one.arguments, one.under_way)
            for one in recorded
            for begin in [seconds(one.begin)]
        ]

    def _anchor(self) -> tuple[Any, float, float]:
        """Return a mark, the host's time at the mark, and the uncertainty. On a GPU this waits for the device."""
        if self._device.type != "cuda":
            return 0.0, 0.0, 0.0
        torch.cuda.synchronize(self._device)
        before, mark = self._host_now(), self.now()
        torch.cuda.synchronize(self._device)
        after = self._host_now()
        return mark, (before + after) / 2, (after - before) / 2

    def _seconds(self) -> Callable[[Any], float]:
        """Return a function that turns marks into times of the host."""
        if self._device.type != "cuda":
            return float
        last, last_at, uncertainty = self._anchor()
        self.uncertainty = max(self.uncertainty, uncertainty)
        length = self._zero.elapsed_time(last)
        pace = (last_at - self._zero_at) / length if length > 0 else 1e-3  # host seconds per device millisecond
        return lambda mark: self._zero_at + pace * float(self._zero.elapsed_time(mark))


class _Recorded(NamedTuple):
    name: str
    category: str
    begin: Any
    end: Any
    arguments: Mapping[str, Any]
    under_way: bool


class _Recording:
    """The context manager that `record` returns."""

    __slots__ = ("_arguments", "_begin", "_category", "_name", "_profiler")

    def __init__(self, profiler: Profiler, name: str, category: str, arguments: Mapping[str, Any]) -> None:
        self._profiler, self._name, self._category, self._arguments = profiler, name, category, arguments

    def __enter__(self) -> None:
        self._begin = self._profiler.now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = self._profiler.now()
        self._profiler.add(self._name, self._category, self._begin, end, arguments=self._arguments)


def size_in_words(size: float) -> str:
    """Return a readable number of bytes: `512 B`, `1.5 KiB`, `4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
