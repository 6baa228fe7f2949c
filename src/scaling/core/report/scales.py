"""Scales: from values to places in a picture, and the round values on its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scaling.core.report.numbers import powers, ticks
from scaling.core.report.series import Series

GRID: Final = 10_000
"""Units of a picture of curves in both directions, whatever its shape on the screen."""
_LOGARITHMIC_FROM: Final = 50.0
"""Positive curves whose largest value is more than so many times their median have a logarithmic axis."""
_LARGEST: Final = 1e100
"""Larger values are drawn as this one, and values that differ by less than its inverse as equal: sums stay finite."""
_SAME: Final = 1e-12
"""Values whose relative difference is no larger are drawn as equal."""


@dataclass(frozen=True)
class Scale:
    """A range of values, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the places of values, from 0 at the lower end to `GRID` at the upper."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log10(low), math.log10(high), np.log10(np.maximum(values, low))
        places = (np.clip(values, -_LARGEST, _LARGEST) - low) / (high - low)
        return np.rint(np.clip(places, 0, 1) * GRID).astype(np.int64)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values in the range."""
        return powers(self.low, self.high, count=count) if self.logarithmic else ticks(self.low, self.high, count=count)


def scale_of(curves: Iterable[Series], *, zero: bool = False) -> Scale:
    """Return the range of all finite values of `curves`, with some room; with `zero` it starts at 0."""
    values = np.concatenate([np.empty(0), *(series.finite.values for series in curves)])
    if not len(values):
        return Scale(0.0, 1.0)
    values = np.clip(values, -_LARGEST, _LARGEST)
    low, high = float(values.min()), float(values.max())
    if low > 1 / _LARGEST and high / float(np.median(values)) > _LOGARITHMIC_FROM:
        return Scale(low * 0.9, high * 1.1, logarithmic=True)
    if zero and low >= 0:
        low = 0.0
    if high - low <= max(_SAME * max(abs(low), abs(high)), 1 / _LARGEST):
        room = abs(low) / 10 or 1.0
        return Scale(low - room, high + room)
    room = (high - low) / 20
    return Scale(low if zero and low == 0 else low - room, high + room)
