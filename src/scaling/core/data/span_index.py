"""Where each document begins and how long it is, every entry confirmed by its neighbours.

Documents follow each other without gaps. So an entry is right only if it begins where the one before it ends, and ends
where the next one begins: one look at three entries reveals any single damaged number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from scaling.core.data.documents import BLOCK_SIZE, damaged, spread
from scaling.core.errors import DataError

ENTRIES_CHECKED_AT_OPENING: Final = 1 << 20
"""An index of up to this many entries is checked as a whole when it is opened: about 20 ms."""


@final
class SpanIndex:
    """The (start, size) entries of an index file, which together cover range(total) without gaps."""

    def __init__(
        self,
        path: Path,
        *,
        count: int,
        total: int,
        read: Callable[[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> None:
        self.path = path
        self.count = count
        self.total = total
        self._read = read
        """Returns the starts and the sizes of entries first to stop."""
        self._is_checked = False

    def check_at_opening(self) -> None:
        """Check all entries of a small index, and a fixed number of them, evenly spread, of a large one."""
        if self.count <= ENTRIES_CHECKED_AT_OPENING:
            self.check()
        else:
            for entry in spread(self.count):
                self.span(entry)

    def span(self, entry: int) -> tuple[int, int]:
        """Return the start and the size of one entry, after comparing it with its neighbours."""
        first, stop = max(entry - 1, 0), min(entry + 2, self.count)
        starts, sizes = self._read(first, stop)
        here = entry - first
        start, size = int(starts[here]), int(sizes[here])
        begins = int(starts[0]) + int(sizes[0]) if entry > 0 else 0
        ends = int(starts[-1]) if stop > entry + 1 else self.total
        if size < 0 or start != begins or start + size != ends or ends > self.total:
            raise self._contradiction(entry)
        return start, size

    def check(self) -> None:
        """Check every entry, once."""
        if self._is_checked:
            return
        end = 0
        for first in range(0, self.count, BLOCK_SIZE):
            starts, sizes = self._read(first, min(first + BLOCK_SIZE, self.count))
            wrong = (sizes < 0) | (sizes > self.total)
            if not wrong.any():
                ends = end + np.cumsum(sizes)
                wrong = (starts != ends - sizes) | (ends > self.total)
            if wrong.any():
                raise self._contradiction(first + int(wrong.argmax()))
            end = int(ends[-1])
        if end != self.total:
            raise damaged(self.path, f"its entries end at {end}, and what they describe ends at {self.total}")
        self._is_checked = True

    def _contradiction(self, entry: int) -> DataError:
        return damaged(self.path, f"entry {entry} contradicts its neighbours, or what it describes ends before it")
