"""Divide the documents of a data set into training and validation, the same way in every process and run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Part(Enum):
    """A part of a data set's documents."""

    ALL = "all"
    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Split:
    """Which documents to use. A document is in validation where a hash of its number falls below the fraction.

    So no document is in both parts, and adding documents at the end of the data moves none between them.
    """

    part: Part = Part.ALL
    validation_fraction: float = 0.0

    def contains(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return for each of the documents `start` to `stop` (exclusive) whether it is in this part."""
        if self.part is Part.ALL:
            return np.ones(stop - start, np.bool_)
        validation = uniform(start, stop) < self.validation_fraction
        return validation if self.part is Part.VALIDATION else ~validation

    def lengths(self, sizes: NDArray[Any], start: int) -> NDArray[np.int64]:
        """Return the sizes of documents from `start` on, 0 for those of another part or without two tokens."""
        used = (sizes >= 2) & self.contains(start, start + len(sizes))
        return np.where(used, sizes, 0).astype(np.int64)


def uniform(start: int, stop: int) -> NDArray[np.float64]:
    """Hash document numbers to [0, 1): the finaliser of the SplitMix64 generator, 53 bits of it."""
    state = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    top: NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64)
    return top * 2.0**-53
