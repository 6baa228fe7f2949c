"""Statistics from merged sums are those of the whole tensor, however it was cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from scaling.core.statistics import sums
from scaling.core.statistics.config import Statistic
from scaling.core.statistics.order import QUANTILES, ordered_statistics
from scaling.core.statistics.sums import FORMULAS, MAXIMA, SUMS, add_part, columns_of, columns_scaled, empty_sums

Values = NDArray[np.float64]


def central(x: Values, power: int) -> float:
    return float(((x - x.mean()) ** power).mean())


REFERENCE: Mapping[Statistic, Callable[[Values], float]] = {
    Statistic.COUNT: lambda x: float(x.size),
    Statistic.MEAN: lambda x: float(x.mean()),
    Statistic.STD: lambda x: float(x.std()),
    Statistic.RMS: lambda x: math.sqrt((x**2).mean()),
    Statistic.L1: lambda x: float(np.abs(x).mean()),
    Statistic.SKEW: lambda x: central(x, 3) / central(x, 2) ** 1.5,
    Statistic.KURTOSIS: lambda x: central(x, 4) / central(x, 2) ** 2 - 3.0,
    Statistic.MAX: lambda x: float(x.max()),
    Statistic.MIN: lambda x: float(x.min()),
    Statistic.ABS_MAX: lambda x: float(np.abs(x).max()),
    Statistic.ABS_MIN: lambda x: float(np.abs(x).min()),
    Statistic.ABS_STD: lambda x: float(np.abs(x).std()),
    Statistic.NORM_SPARSITY: lambda x: math.sqrt(x.size) * float(np.linalg.norm(x)) / float(np.abs(x).sum()),
    Statistic.PCT_ZERO: lambda x: 100.0 * float((x == 0).mean()),
    Statistic.PCT_UNDERFLOW_E4M3: lambda x: 100.0 * float((np.abs(x) <= 2**-9).mean()),
    Statistic.PCT_UNDERFLOW_E5M2: lambda x: 100.0 * float((np.abs(x) <= 2**-16).mean()),
    Statistic.PCT_POSINF: lambda x: 0.0,
    Statistic.PCT_NEGINF: lambda x: 0.0,
    Statistic.PCT_NAN: lambda x: 0.0,
}
SCALED = {
    *(Statistic.MEAN, Statistic.STD, Statistic.RMS, Statistic.L1, Statistic.ABS_STD),
    *(Statistic.MAX, Statistic.MIN, Statistic.ABS_MAX, Statistic.ABS_MIN),
}
"""What grows with its tensor."""


def statistics_of(parts: list[Tensor], factor: float = 1.0) -> dict[Statistic, float]:
    """Return all statistics that follow from sums, each part taken by a rank of its own."""
    columns = columns_of(FORMULAS)
    taken = [empty_sums(1, torch.device("cpu")) for _ in parts]
    for (own, own_maxima), part in zip(taken, parts, strict=True):
        add_part(own[0], own_maxima[0], part, columns)
    merged = torch.stack([own for own, _ in taken]).sum(0)
    maxima = torch.stack([own for _, own in taken]).amax(0)
    scaled = columns_scaled(merged, maxima, torch.tensor([factor], dtype=torch.float64))
    return {statistic: float(formula.of(scaled)) for statistic, formula in FORMULAS.items()}


numbers = st.lists(st.floats(-8, 8, width=32) | st.sampled_from([0.0, 2.0**-9, 2.0**-17]), min_size=2, max_size=40)


@given(values=numbers, cuts=st.lists(st.integers(0, 40), max_size=4), chunk=st.integers(1, 50))
def test_statistics_of_parts_are_those_of_the_whole(values: list[float], cuts: list[int], chunk: int) -> None:
    x = torch.tensor([*values, 1.0, -2.0], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "CHUNK", chunk)
        found = statistics_of(list(x.tensor_split(sorted(cuts))))
    for statistic, reference in REFERENCE.items():
        assert found[statistic] == pytest.approx(reference(x.numpy()), rel=1e-9, abs=1e-9), statistic


def test_every_statistic_follows_from_sums_or_from_the_order() -> None:
    assert {*FORMULAS, *QUANTILES} == set(Statistic)
    assert set(REFERENCE) == set(FORMULAS)
    assert {name for formula in FORMULAS.values() for name in formula.needs} == {*SUMS, *MAXIMA}


def test_a_factor_acts_as_if_all_elements_had_been_multiplied() -> None:
    x = torch.tensor([0.5, -2.0, 3.0, 0.0], dtype=torch.float64)
    before, after = statistics_of([x]), statistics_of([x], factor=4.0)
    for statistic in FORMULAS:
        assert after[statistic] == pytest.approx(before[statistic] * (4.0 if statistic in SCALED else 1.0)), statistic


def test_what_is_no_number_is_counted_and_left_out_of_extremes() -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf, -3.0], dtype=torch.float32)
    found = statistics_of([x])
    shares = [found[name] for name in (Statistic.PCT_NAN, Statistic.PCT_POSINF, Statistic.PCT_NEGINF)]
    assert shares == [20.0, 20.0, 20.0]
    assert (found[Statistic.MAX], found[Statistic.MIN], found[Statistic.ABS_MIN]) == (math.inf, -math.inf, 1.0)
    assert math.isnan(found[Statistic.MEAN])


def test_where_nothing_is_a_number_no_extreme_is_one() -> None:
    found = statistics_of([torch.full((3,), math.nan)])
    extremes = (Statistic.MAX, Statistic.MIN, Statistic.ABS_MAX, Statistic.ABS_MIN)
    assert all(math.isnan(found[name]) for name in extremes)


def test_only_columns_that_are_needed_are_computed() -> None:
    own, maxima = empty_sums(1, torch.device("cpu"))
    add_part(own[0], maxima[0], torch.tensor([2.0, 3.0]), columns_of([Statistic.MEAN, Statistic.MEDIAN]))
    assert dict(zip(SUMS, own[0].tolist(), strict=True)) == {**dict.fromkeys(SUMS, 0.0), "count": 2.0, "sum": 5.0}
    assert set(maxima[0].tolist()) == {-math.inf}


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60))
def test_quantiles_are_interpolated_between_elements(values: list[float]) -> None:
    x = np.array(values)
    wanted = tuple(statistic for statistic in QUANTILES if statistic is not Statistic.MAX_SPARSITY)
    found = ordered_statistics(torch.tensor(values, dtype=torch.float64), wanted).tolist()
    for statistic, value in zip(wanted, found, strict=True):
        quantile = QUANTILES[statistic]
        expected = np.quantile(np.abs(x) if quantile.absolute else x, quantile.share)
        assert value == pytest.approx(float(expected), rel=1e-12, abs=1e-12), statistic


def test_max_sparsity_compares_the_largest_with_the_median() -> None:
    x = torch.tensor([-8.0, 1.0, -2.0])
    assert ordered_statistics(x, (Statistic.MAX_SPARSITY,)).tolist() == [3.0]
