"""A clock that gives every moment to one part of the work, so that the parts add up to the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Counts each moment for the innermost part that has begun and not ended."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = now()
        self._open: list[str] = []
        self.seconds: dict[str, float] = {}
        self.spans: list[tuple[str, float, float]] = []
        """Uninterrupted stretches, in the order of their ends."""

    @property
    def innermost(self) -> str | None:
        """Return the part for which time counts now."""
        return self._open[-1] if self._open else None

    def enter(self, part: str) -> None:
        """Let time count for a part until it is left."""
        self._settle()
        self._open.append(part)

    def leave(self) -> None:
        """Go back to the part around the innermost one."""
        self._settle()
        self._open.pop()

    def change(self, part: str) -> None:
        """Let time count for another part from now on, in place of the innermost one."""
        self._settle()
        self._open[-1] = part

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count what happens inside for a part."""
        self.enter(part)
        try:
            yield
        finally:
            self.leave()

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return a function whose calls count for a part."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with self.within(part):
                return function(*args, **options)

        return call

    def restart(self) -> None:
        """Forget what has been counted."""
        self._since = self._now()
        self.seconds.clear()
        self.spans.clear()

    def _settle(self) -> None:
        now = self._now()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
            self.spans.append((part, self._since, now))
        self._since = now
