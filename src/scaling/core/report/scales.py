"""From values to places in a picture, and back to the words on its axes."""

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
"""Pictures of curves have so many units in both directions, whatever their shape on the screen."""
_LOGARITHMIC_FROM: Final = 50.0
"""From this ratio of the largest to the usual value on, a positive curve is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """A range of values, linear or logarithmic."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return where values are, from 0 at the lower end to `GRID`."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, values = math.log10(low), math.log10(high), np.log10(np.maximum(values, low))
        # Halved, for the distance of two finite numbers need not be finite.
        places: NDArray[np.float64] = (values / 2 - low / 2) / (high / 2 - low / 2)
        return np.rint(np.clip(places, 0, 1) * GRID).astype(np.int64)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values of the range."""
        return powers(self.low, self.high, count=count) if self.logarithmic else ticks(self.low, self.high, count=count)


def scale_of(curves: Iterable[Series], *, zero: bool = False) -> Scale:
    """Return the range in which all finite values of `curves` lie, with some room; from 0 on with `zero`."""
    values = np.concatenate([np.empty(0), *(series.finite.values for series in curves)])
    if not len(values):
        return Scale(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / max(float(np.median(values)), low) > _LOGARITHMIC_FROM:
        return Scale(low * 0.9, min(high * 1.1, 1e308), logarithmic=True)
    if zero and low >= 0:
        low = 0.0
    if low == high:
        room = abs(low) / 10 or 1.0
        return Scale(low - room, high + room)
    room = high / 20 - low / 20
    return Scale(low if zero and low == 0 else max(low - room, -1e308), min(high + room, 1e308))
