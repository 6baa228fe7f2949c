"""Statistics that follow from the order of a tensor's elements, and so need all elements in one place. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from scaling.core.statistics.config import Statistic


@dataclass(frozen=True)
class Quantile:
    """The number that a share of all elements does not exceed, interpolated linearly between two elements."""

    share: float
    absolute: bool = False
    """Whether it is a quantile of the absolute values."""


_PERCENT: Final = (1, 10, 25, 75, 90, 99)

QUANTILES: Mapping[Statistic, Quantile] = MappingProxyType(
    {
        Statistic.MEDIAN: Quantile(0.5),
        Statistic.ABS_MEDIAN: Quantile(0.5, absolute=True),
        Statistic.MAX_SPARSITY: Quantile(0.5, absolute=True),
        **{Statistic(f"quantile_{percent}"): Quantile(percent / 100) for percent in _PERCENT},
        **{Statistic(f"abs_quantile_{percent}"): Quantile(percent / 100, absolute=True) for percent in _PERCENT},
    }
)
"""The quantile that each of the statistics uses."""


@torch.no_grad()
def ordered_statistics(x: Tensor, statistics: tuple[Statistic, ...]) -> Tensor:
    """Return these statistics of a vector of at least one element, float64 [len(statistics)], on the device of `x`."""
    orders = {quantile.absolute for quantile in map(QUANTILES.__getitem__, statistics)}
    wide = x.to(torch.float64)
    ordered = {absolute: (wide.abs() if absolute else wide).sort().values for absolute in orders}
    found = []
    for statistic in statistics:
        quantile = QUANTILES[statistic]
        values = ordered[quantile.absolute]
        at = quantile.share * (len(values) - 1)
        low = values[int(at)]
        value = low + (at - int(at)) * (values[min(int(at) + 1, len(values) - 1)] - low)
        found.append((values[-1] - value) / value if statistic is Statistic.MAX_SPARSITY else value)
    return torch.stack(found)
