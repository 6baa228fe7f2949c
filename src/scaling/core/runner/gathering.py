"""Gathering: collect numbers that come close together, to process them as one list."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

_GATHER_SECONDS: Final = 0.05


@final
class Gathering:
    """Collector that passes numbers that come close together to `work` as one list, in separate threads.

    `put` may be called from a signal handler, wherever the signal has interrupted the thread.
    """

    def __init__(self, work: Callable[[Sequence[int]], None]) -> None:
        self._work = work
        self._items: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._gatherer = threading.Thread(target=self._gather, daemon=True)
        self._gatherer.start()

    def put(self, item: int) -> None:
        """Add a number."""
        self._items.put(item)

    def finish(self, *, seconds: float) -> None:
        """Wait until all numbers that were put have been processed, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        self._items.put(None)
        self._gatherer.join(seconds)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _gather(self) -> None:
        while (item := self._items.get()) is not None:
            items = [item]
            time.sleep(_GATHER_SECONDS)
            items += self._rest()
            thread = threading.Thread(target=self._work, args=(items,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _rest(self) -> Iterable[int]:
        while True:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return
            if item is None:
                self._items.put(None)
                return
            yield item
