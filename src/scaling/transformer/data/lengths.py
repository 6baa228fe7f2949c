"""How long the documents of a data set are: counted in blocks, so that any number of them takes the same memory."""

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
    """The numbers of tokens of documents, summed up."""

    smallest: int
    largest: int
    mean: float
    median: int
    """The lower one of the two in the middle; at most `LONGEST`, which then stands for anything from there on."""
    by_bits: tuple[int, ...]
    """How many lengths have b bits, that is, lie from 2^(b - 1) to 2^b - 1; 0 has none."""


def lengths_of(sizes: Callable[[int, int], NDArray[np.integer[Any]]], documents: int) -> Lengths:
    """Sum up the lengths of `documents` documents (at least 1); `sizes(start, stop)` returns a range of them."""
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
