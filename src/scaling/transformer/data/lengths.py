"""Statistics of the lengths of documents, counted in blocks, so that any number of documents takes the same memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 1 << 20
LONGEST: Final = 1 << 20
"""Lengths below this are counted one by one, for the median."""
_BITS: Final = 64


@dataclass(frozen=True)
class Lengths:
    """Statistics of the numbers of tokens of documents."""

    smallest: int
    largest: int
    mean: float
    median: int
    """The lower one of the two in the middle; at most `LONGEST`, which then means that length or more."""
    by_bits: tuple[int, ...]
    """How many lengths have b bits, that is, are from 2^(b - 1) to 2^b - 1, by b; a length of 0 has none."""


def lengths_of(sizes: Callable[[int, int], NDArray[np.integer[Any]]], documents: int) -> Lengths:
    """Return statistics of `documents` lengths (at least 1); `sizes(start, stop)` returns a range of them."""
    total, smallest, largest = 0, np.iinfo(np.int64).max, 0
    each = np.zeros(LONGEST + 1, np.int64)
    by_bits = np.zeros(_BITS, np.int64)
    for start in range(0, documents, BLOCK):
        block = np.asarray(sizes(start, min(start + BLOCK, documents)), np.int64)
        total += int(block.sum())
        smallest, largest = min(smallest, int(block.min())), max(largest, int(block.max()))
        each += np.bincount(np.minimum(block, LONGEST), minlength=LONGEST + 1)
        by_bits += np.bincount(np.frexp(block.astype(np.float64))[1], minlength=_BITS)
    median = int(np.searchsorted(np.cumsum(each), (documents + 1) // 2))
    return Lengths(smallest, largest, total / documents, median, tuple(by_bits[: largest.bit_length() + 1].tolist()))
