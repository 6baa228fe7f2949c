"""The figures of a page: those everybody looks at first, then the further metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scaling.core.report.curves import Chart, Curve
from scaling.core.report.reading import Run
from scaling.core.report.series import EMPTY, Series
from scaling.core.report.statistics import statistic_of

LOSS: Final = "training/loss"
EVALUATION_LOSS: Final = "evaluation/loss"
NORM: Final = "training/global_grad_norm"
DURATION: Final = "training/step_duration"
TOKENS: Final = "training/consumed_tokens"
TOKENS_PER_SECOND: Final = "training/tokens_per_second"
SAMPLES_PER_SECOND: Final = "training/samples_per_second"
MEMORY: Final = "training/peak_memory_bytes"
_RATES: Final = "training/learning_rate_"
_NO_CURVE: Final = frozenset({TOKENS, "training/consumed_samples", "training/epochs"})
"""Metrics that grow steadily, whose curves say nothing. Tokens are an axis."""
_MAX_FURTHER: Final = 60
_MAX_CURVES: Final = 600


@dataclass(frozen=True)
class _Kind:
    """How a metric is drawn."""

    title: str
    unit: str = ""
    factor: float = 1.0
    smooth: bool = True
    from_zero: bool = False


_MAIN: Final[Mapping[str, _Kind]] = {
    NORM: _Kind("Gradient norm"),
    TOKENS_PER_SECOND: _Kind("Tokens per second", "whole job", from_zero=True),
    SAMPLES_PER_SECOND: _Kind("Samples per second", "whole job", from_zero=True),
    "training/mfu": _Kind("Model FLOPs utilisation", "%", 100.0, from_zero=True),
    "training/data_wait_fraction": _Kind("Waiting for data", "% of a step", 100.0, from_zero=True),
    MEMORY: _Kind("Peak memory", "GiB", 2.0**-30, smooth=False, from_zero=True),
}
_FURTHER: Final[Mapping[str, _Kind]] = {
    DURATION: _Kind("Duration of a step", "s", from_zero=True),
    "training/loss_scale": _Kind("Loss scale", smooth=False),
}


def main_charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Return the figures that come first. Each shows those of `runs` that have values for it."""
    losses = [
        Curve(run=index, name=name, series=_of(run, LOSS), again=_again(run, LOSS), points=_of(run, EVALUATION_LOSS))
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
        if LOSS in run.series or EVALUATION_LOSS in run.series
    ]
    charts = [Chart(title="Loss", curves=losses, smooth=True)] if losses else []
    charts += filter(None, [_chart(runs, names, NORM, _MAIN[NORM])])
    charts += _rates(runs, names)
    charts += filter(None, (_chart(runs, names, metric, kind) for metric, kind in _MAIN.items() if metric != NORM))
    return charts


def further_charts(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[Chart], list[str]]:
    """Return figures of all other metrics up to a limit, and the names of the metrics beyond it.

    Statistics of tensors are drawn by `draw_statistics` instead.
    """
    shown = {LOSS, EVALUATION_LOSS, *_MAIN, *_NO_CURVE}
    left = [
        metric
        for metric in _metrics(runs)
        if metric not in shown and not metric.startswith(_RATES) and statistic_of(metric) is None
    ]
    most = max(1, min(_MAX_FURTHER, _MAX_CURVES // len(runs)))
    charts = [_chart(runs, names, metric, _FURTHER.get(metric, _Kind(metric))) for metric in left[:most]]
    return [chart for chart in charts if chart is not None], left[most:]


def _metrics(runs: Sequence[Run]) -> list[str]:
    """Return the names of all metrics: of training, of evaluation, of statistics, then others."""
    order = ("training/", "evaluation/", "statistics/")
    found = {metric for run in runs for metric in run.series}
    return sorted(found, key=lambda name: ([not name.startswith(prefix) for prefix in order], name))


def _chart(runs: Sequence[Run], names: Sequence[str], metric: str, kind: _Kind) -> Chart | None:
    curves = [
        Curve(
            run=index,
            name=name,
            series=run.series[metric].scaled(kind.factor),
            again=_again(run, metric).scaled(kind.factor),
        )
        for index, (run, name) in enumerate(zip(runs, names, strict=True))
        if metric in run.series
    ]
    if not curves:
        return None
    smooth = kind.smooth and not metric.startswith("evaluation/")
    return Chart(title=kind.title, unit=kind.unit, curves=curves, smooth=smooth, from_zero=kind.from_zero)


def _rates(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Chart]:
    """Yield the learning rates: one figure where they are the same in all groups, else one for each group."""
    groups = sorted({metric for run in runs for metric in run.series if metric.startswith(_RATES)})
    alike = all(_same([run.series[group] for group in groups if group in run.series]) for run in runs)
    for group in groups[:1] if alike else groups[:_MAX_FURTHER]:
        suffix = "" if alike else f" of {group.removeprefix(_RATES)}"
        kind = _Kind(f"Learning rate{suffix}", smooth=False, from_zero=True)
        if chart := _chart(runs, names, group, kind):
            yield chart


def _same(found: Sequence[Series]) -> bool:
    return all(
        np.array_equal(series.steps, found[0].steps) and np.array_equal(series.values, found[0].values)
        for series in found[1:]
    )


def _of(run: Run, metric: str) -> Series:
    return run.series.get(metric, EMPTY)


def _again(run: Run, metric: str) -> Series:
    return run.again.get(metric, EMPTY)
