"""TensorStatisticsRecorderConfig: which statistics of which tensors are recorded, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import OnResume
from scaling.core.errors import Problem


class Statistic(str, Enum):
    """A statistic of a tensor. Those from `median` on gather the tensor on one rank."""

    COUNT = "count"
    MEAN = "mean"
    STD = "std"
    RMS = "rms"
    L1 = "l1"
    SKEW = "skew"
    KURTOSIS = "kurtosis"
    MAX = "max"
    MIN = "min"
    ABS_MAX = "abs_max"
    ABS_MIN = "abs_min"
    ABS_STD = "abs_std"
    NORM_SPARSITY = "norm_sparsity"
    PCT_ZERO = "pct_zero"
    PCT_UNDERFLOW_E4M3 = "pct_underflow_e4m3"
    PCT_UNDERFLOW_E5M2 = "pct_underflow_e5m2"
    PCT_POSINF = "pct_posinf"
    PCT_NEGINF = "pct_neginf"
    PCT_NAN = "pct_nan"
    MEDIAN = "median"
    ABS_MEDIAN = "abs_median"
    MAX_SPARSITY = "max_sparsity"
    QUANTILE_1 = "quantile_1"
    QUANTILE_10 = "quantile_10"
    QUANTILE_25 = "quantile_25"
    QUANTILE_75 = "quantile_75"
    QUANTILE_90 = "quantile_90"
    QUANTILE_99 = "quantile_99"
    ABS_QUANTILE_1 = "abs_quantile_1"
    ABS_QUANTILE_10 = "abs_quantile_10"
    ABS_QUANTILE_25 = "abs_quantile_25"
    ABS_QUANTILE_75 = "abs_quantile_75"
    ABS_QUANTILE_90 = "abs_quantile_90"
    ABS_QUANTILE_99 = "abs_quantile_99"


class TensorStatisticsRecorderConfig(BaseConfig):
    """Statistics of activations, weights and their gradients, recorded in some steps and written with the metrics."""

    on_resume = OnResume.RUNTIME

    interval: int = Field(default=100, ge=1)
    """Record in every step whose number is a multiple of this."""
    statistics: list[tuple[str, list[Statistic]]] = Field(
        default_factory=lambda: [
            (
                "*",
                [
                    *(Statistic.MEAN, Statistic.STD, Statistic.L1, Statistic.ABS_STD),
                    *(Statistic.MAX, Statistic.MIN, Statistic.ABS_MAX, Statistic.ABS_MIN),
                ],
            )
        ]
    )
    """Pairs of a pattern and the statistics of the tensors whose names it fits (* fits anything). The first pattern
    that fits counts; with an empty list of statistics it leaves its tensors out. Names:
    parameters/layers.1.mlp.dense_in.weight, parameter_gradients/ with the same, activations/layers.1.mlp.dense_in (the
    module's output) and activation_gradients/ with the same; the part before the slash may be left out. median,
    abs_median, max_sparsity and the quantiles gather the whole tensor on rank 0 (an activation for the whole global
    batch), which takes that much memory and communication; all others are sums and maxima, which take two all-reduces
    for all tensors together."""
    include_module_type: bool = False
    """Name activations with the class of their layer: layers.1.PreNorm.mlp."""

    def problems(self) -> Iterator[Problem]:
        """Check that something is recorded."""
        if not any(statistics for _, statistics in self.statistics):
            yield Problem("statistics", "names no statistic; add one, or set tensor_statistics_recorder_config to null")
