"""Progress of long preparations: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_INTERVAL = 10.0
"""Seconds between two lines where output is not a terminal."""


class ProgressCallback(Protocol):
    """Called repeatedly with the current stage and how far it is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report `done` of `total` units of a stage; a stage is over when they are equal."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@final
class ConsoleProgress:
    """Display of progress on standard error while its `with` block runs."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._next_line = 0.0

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=self._console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a stage are done."""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        if stage not in self._tasks or done >= total or now >= self._next_line:
            self._tasks[stage] = TaskID(len(self._tasks))
            self._next_line = now + LINE_INTERVAL
            share = 100 if total == 0 else 100 * done // total
            self._console.print(f"{stage}: {share} %", highlight=False, soft_wrap=True, markup=False)
