"""Values over steps: freed from repetitions, thinned out for a picture, smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SMOOTHED_FROM: Final = 50
"""A curve with fewer values is not smoothed: its values can be told apart."""
_WINDOWS: Final = 40
"""A smoothing window is about a curve's number of values divided by this."""


@dataclass(frozen=True)
class Series:
    """Values by their steps, in the order in which they were written."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, steps: Sequence[int], values: Sequence[float]) -> Series:
        """Return a series of these values."""
        return cls(np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> Series:
        """Return the part of the series whose values are finite."""
        good = np.isfinite(self.values)
        return self if good.all() else Series(self.steps[good], self.values[good])

    @property
    def nonfinite_steps(self) -> NDArray[np.int64]:
        """Return the steps whose value is not finite."""
        return self.steps[~np.isfinite(self.values)]

    def scaled(self, factor: float) -> Series:
        """Return the values times `factor`."""
        return Series(self.steps, self.values * factor)


EMPTY: Final = Series.of((), ())


def last_of_each_step(series: Series) -> tuple[Series, Series]:
    """Return the last value of each step, in the order of steps, and the earlier values of repeated steps."""
    steps = series.steps
    if len(steps) < 2 or (np.diff(steps) > 0).all():
        return series, EMPTY
    backwards = np.unique(steps[::-1], return_index=True)[1]
    kept = len(steps) - 1 - backwards
    former = np.setdiff1d(np.arange(len(steps)), kept)
    return Series(steps[kept], series.values[kept]), Series(steps[former], series.values[former])


def thinned(series: Series, buckets: int) -> Series:
    """Return both ends and the smallest and largest value of each of `buckets` parts; all values where there are few.

    So a spike of a single step stays, and every value returned is a value of the series, at its step. Values that are
    not finite are left out of a part that has others.
    """
    count = len(series)
    if count <= 2 * buckets:
        return series
    size = -(-count // buckets)
    index = np.minimum(np.arange(buckets * size), count - 1).reshape(buckets, size)
    values = series.values[index]
    finite = np.isfinite(values)
    lows = np.where(finite, values, np.inf).argmin(axis=1)
    highs = np.where(finite, values, -np.inf).argmax(axis=1)
    rows = np.arange(buckets)
    chosen = np.unique(np.concatenate(([0], index[rows, lows], index[rows, highs], [count - 1])))
    return Series(series.steps[chosen], series.values[chosen])


def window(count: int) -> int:
    """Return over how many values a curve with `count` values is smoothed: an odd number, 1 where it is not."""
    return 1 if count < SMOOTHED_FROM else 2 * max(count // _WINDOWS // 2, 2) + 1


def smoothed(series: Series, points: int) -> Series:
    """Return means over `window` finite values around at most `points` steps, spread evenly.

    The window is centred, so that the curve does not lag; towards both ends it shrinks, so that the curve begins and
    ends at the values themselves.
    """
    given = series.finite
    count = len(given)
    if not count:
        return given
    half = window(count) // 2
    centres = np.unique(np.linspace(0, count - 1, num=min(points, count)).astype(np.int64))
    reaches = np.minimum(half, np.minimum(centres, count - 1 - centres))
    bounds = zip((centres - reaches).tolist(), (centres + reaches + 1).tolist(), strict=True)
    return Series(given.steps[centres], np.array([_mean(given.values[first:end]) for first, end in bounds]))


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean, which is finite where the values are, and lies between them."""
    largest = float(np.abs(values).max()) or 1.0
    mean = float((values / largest).mean()) * largest
    return min(max(mean, float(values.min())), float(values.max()))
