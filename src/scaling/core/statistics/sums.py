"""Sums and maxima from which statistics follow; those of a tensor's parts merge into those of the whole. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from scaling.core.statistics.config import Statistic

CHUNK: Final = 2**20
"""Elements that are widened to float64 at a time."""

E4M3_UNDERFLOW: Final = 2.0**-9
"""Smallest positive number in 8 bits with 4 exponent bits (float8 E4M3)."""
E5M2_UNDERFLOW: Final = 2.0**-16
"""Smallest positive number in 8 bits with 5 exponent bits (float8 E5M2)."""


@dataclass(frozen=True)
class Column:
    """A number that is computed from every part of a tensor and merged over parts."""

    of: Callable[[Tensor], Tensor]
    """Computes the number, 0-d, from a float64 vector."""
    degree: int = 0
    """The power of a factor by which the number grows if all elements are multiplied by the factor."""


SUMS: Mapping[str, Column] = MappingProxyType(
    {
        "count": Column(lambda x: torch.full((), x.numel(), dtype=x.dtype, device=x.device)),
        "sum": Column(torch.sum, 1),
        "absolute": Column(lambda x: x.abs().sum(), 1),
        "squares": Column(lambda x: x.square().sum(), 2),
        "cubes": Column(lambda x: (x.square() * x).sum(), 3),
        "fourths": Column(lambda x: x.square().square().sum(), 4),
        "zeros": Column(lambda x: _number(x == 0)),
        "e4m3": Column(lambda x: _number(x.abs() <= E4M3_UNDERFLOW)),
        "e5m2": Column(lambda x: _number(x.abs() <= E5M2_UNDERFLOW)),
        "posinf": Column(lambda x: _number(x == torch.inf)),
        "neginf": Column(lambda x: _number(x == -torch.inf)),
        "nan": Column(lambda x: _number(x.isnan())),
    }
)
"""Numbers that are summed over parts."""

MAXIMA: Mapping[str, Column] = MappingProxyType(
    {
        "max": Column(lambda x: _largest(x), 1),
        "negative_min": Column(lambda x: _largest(-x), 1),
        "abs_max": Column(lambda x: _largest(x.abs()), 1),
        "negative_abs_min": Column(lambda x: _largest(-x.abs()), 1),
    }
)
"""Numbers whose maximum over parts is taken; minima are maxima of the negative values. NaN does not count."""


def _number(chosen: Tensor) -> Tensor:
    return chosen.sum(dtype=torch.float64)


def _largest(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax()


@dataclass(frozen=True)
class Formula:
    """How a statistic follows from merged columns."""

    needs: tuple[str, ...]
    of: Callable[[Mapping[str, Tensor]], Tensor]
    """Computes the statistic of n tensors, [n], from one float64 [n] for each column."""


def _mean(column: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    return lambda of: of[column] / of["count"]


def _percent(column: str) -> Formula:
    return Formula(("count", column), lambda of: 100.0 * of[column] / of["count"])


def _extreme(column: str, *, sign: float = 1.0) -> Formula:
    """Return the formula of an extreme over all elements that are not NaN; the result is NaN where all are."""
    return Formula(
        ("count", "nan", column), lambda of: torch.where(of["nan"] < of["count"], sign * of[column], torch.nan)
    )


def _std(of: Mapping[str, Tensor], first: str) -> Tensor:
    """Return the standard deviation over all elements (divided by their number), from the first and second moment."""
    return ((of["squares"] - of[first].square() / of["count"]) / of["count"]).clamp_min(0.0).sqrt()


def _third_moment(of: Mapping[str, Tensor]) -> Tensor:
    """Return the third moment about the mean over the third power of the standard deviation."""
    mean, square, cube = (of[column] / of["count"] for column in ("sum", "squares", "cubes"))
    return (cube - 3 * mean * square + 2 * mean**3) / _std(of, "sum") ** 3


def _fourth_moment(of: Mapping[str, Tensor]) -> Tensor:
    """Return the fourth moment about the mean over the squared variance, less 3: 0 for a normal distribution."""
    mean, square, cube, fourth = (of[column] / of["count"] for column in ("sum", "squares", "cubes", "fourths"))
    about = fourth - 4 * mean * cube + 6 * mean.square() * square - 3 * mean**4
    return about / _std(of, "sum") ** 4 - 3.0


FORMULAS: Mapping[Statistic, Formula] = MappingProxyType(
    {
        Statistic.COUNT: Formula(("count",), lambda of: of["count"]),
        Statistic.MEAN: Formula(("count", "sum"), _mean("sum")),
        Statistic.STD: Formula(("count", "sum", "squares"), lambda of: _std(of, "sum")),
        Statistic.RMS: Formula(("count", "squares"), lambda of: (of["squares"] / of["count"]).sqrt()),
        Statistic.L1: Formula(("count", "absolute"), _mean("absolute")),
        Statistic.SKEW: Formula(("count", "sum", "squares", "cubes"), _third_moment),
        Statistic.KURTOSIS: Formula(("count", "sum", "squares", "cubes", "fourths"), _fourth_moment),
        Statistic.MAX: _extreme("max"),
        Statistic.MIN: _extreme("negative_min", sign=-1.0),
        Statistic.ABS_MAX: _extreme("abs_max"),
        Statistic.ABS_MIN: _extreme("negative_abs_min", sign=-1.0),
        Statistic.ABS_STD: Formula(("count", "absolute", "squares"), lambda of: _std(of, "absolute")),
        Statistic.NORM_SPARSITY: Formula(
            ("count", "absolute", "squares"), lambda of: (of["count"] * of["squares"]).sqrt() / of["absolute"]
        ),
        Statistic.PCT_ZERO: _percent("zeros"),
        Statistic.PCT_UNDERFLOW_E4M3: _percent("e4m3"),
        Statistic.PCT_UNDERFLOW_E5M2: _percent("e5m2"),
        Statistic.PCT_POSINF: _percent("posinf"),
        Statistic.PCT_NEGINF: _percent("neginf"),
        Statistic.PCT_NAN: _percent("nan"),
    }
)
"""The statistics that follow from sums and maxima."""


def columns_of(statistics: Iterable[Statistic]) -> frozenset[str]:
    """Return the columns that some statistics need, and the count, which is 0 for a tensor that was not recorded."""
    needed = (FORMULAS[statistic].needs for statistic in statistics if statistic in FORMULAS)
    return frozenset({"count"}).union(*needed)


@torch.no_grad()
def add_part(sums: Tensor, maxima: Tensor, x: Tensor, columns: Collection[str]) -> None:
    """Merge a part of a tensor, of any type and shape, into `sums` [len(SUMS)] and `maxima` [len(MAXIMA)], in place.

    Both are float64 and start as the result of `empty_sums`. Nothing waits for the device.
    """
    for chunk in x.reshape(-1).split(CHUNK):
        if not chunk.numel():
            continue
        wide = chunk.to(torch.float64)
        for number, (name, column) in enumerate(SUMS.items()):
            if name in columns:
                sums[number] += column.of(wide)
        for number, (name, column) in enumerate(MAXIMA.items()):
            if name in columns:
                maxima[number] = torch.maximum(maxima[number], column.of(wide))


def empty_sums(tensors: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sums [tensors, len(SUMS)] and maxima [tensors, len(MAXIMA)] of no elements, float64."""
    sums = torch.zeros(tensors, len(SUMS), dtype=torch.float64, device=device)
    return sums, torch.full((tensors, len(MAXIMA)), -torch.inf, dtype=torch.float64, device=device)


def columns_scaled(sums: Tensor, maxima: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """Return each column [n] of merged sums and maxima, as if all elements of tensor i were times `factors[i]` > 0.

    `factors` is float64 [n]. Counts do not change.
    """
    both = [*zip(SUMS.items(), sums.unbind(1), strict=True), *zip(MAXIMA.items(), maxima.unbind(1), strict=True)]
    return {name: values * factors**column.degree if column.degree else values for (name, column), values in both}
