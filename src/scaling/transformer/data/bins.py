"""Which records share a row: whole records, packed once from their lengths alone. Pure.

A window of 1024 records is packed into bins: each bin gets the longest record left, and then repeatedly the longest one
that still fits. The records of the worst bins of a window are carried over to the next window, where other records may
fit beside them. With log-normal lengths, less than 2 % of the places stay empty.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from scaling.transformer.data.split import uniform

WINDOW: Final = 1024
"""Records that are packed together."""
FULL: Final = 0.98
"""A bin filled to this share is good enough."""
CARRIED: Final = 1 / 4
"""Share of a window that may be carried over to the next one."""

_NUMBER_BITS: Final = 40
"""A record in a window is one integer, its length in the bits above its number: integers sort and compare quickly."""
_NUMBER: Final = (1 << _NUMBER_BITS) - 1


@final
@dataclass(frozen=True)
class Bins:
    """Rows of records, in 4 or 8 bytes per record and 8 per row."""

    members: NDArray[np.integer]
    """The numbers of the records, row after row."""
    bounds: NDArray[np.int64]
    """Where each row begins in `members`, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def row(self, index: int) -> list[int]:
        """Return the numbers of the records in a row."""
        numbers: list[int] = self.members[self.bounds[index] : self.bounds[index + 1]].tolist()
        return numbers


def one_each(numbers: NDArray[np.int64]) -> Bins:
    """Give each record a row of its own."""
    return Bins(_compact(numbers), np.arange(len(numbers) + 1, dtype=np.int64))


def pack(numbers: NDArray[np.int64], lengths: NDArray[np.int64], capacity: int) -> Bins:
    """Put records of these lengths, none above `capacity`, into rows of `capacity` places.

    Records enter the windows in a fixed pseudo-random order, since a file may be sorted by length or by subject. Packs
    about a million records a second.
    """
    scattered = np.argsort(uniform(0, len(numbers)), kind="stable")
    keys = (lengths[scattered] << _NUMBER_BITS) | numbers[scattered]
    members, bounds = array("q"), array("q", [0])
    pool: list[int] = []
    start = 0
    while start < len(keys) or pool:
        stop = start + WINDOW - len(pool)
        pool += keys[start:stop].tolist()
        pool.sort()
        start = stop
        done, pool = _fill(pool, capacity, most_carried=int(WINDOW * CARRIED) if start < len(keys) else 0)
        for found in done:
            members.extend([key & _NUMBER for key in found])
            bounds.append(len(members))
    return Bins(_compact(np.frombuffer(members, np.int64)), np.frombuffer(bounds, np.int64))


def _fill(pool: list[int], capacity: int, *, most_carried: int) -> tuple[list[list[int]], list[int]]:
    """Fill bins with all of a sorted pool; return the bins that are kept, and the records of the worst ones."""
    enough = capacity - int(capacity * FULL)
    done: list[list[int]] = []
    poor: list[tuple[int, list[int]]] = []
    while pool:
        found = [pool.pop()]
        room = capacity - (found[0] >> _NUMBER_BITS)
        while pool and (fits := bisect_left(pool, (room + 1) << _NUMBER_BITS)):
            found.append(pool.pop(fits - 1))
            room -= found[-1] >> _NUMBER_BITS
        if room > enough and most_carried:
            poor.append((-room, found))
        else:
            done.append(found)
    carried: list[int] = []
    for _, found in sorted(poor):
        if len(carried) + len(found) <= most_carried:
            carried += found
        else:
            done.append(found)
    return done, carried


def filled(lengths: Sequence[int] | NDArray[np.int64], rows: int, capacity: int) -> float:
    """Return the share of the places of `rows` rows that records take."""
    return float(np.sum(lengths)) / max(rows * capacity, 1)


def _compact(numbers: NDArray[np.int64]) -> NDArray[np.integer]:
    small = len(numbers) == 0 or int(numbers.max()) <= np.iinfo(np.int32).max
    return numbers.astype(np.int32) if small else numbers
