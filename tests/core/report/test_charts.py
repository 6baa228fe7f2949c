"""Which figures there are for what was measured, and what their axes can count."""

from __future__ import annotations

from pathlib import Path

from scaling.core import Run, read_run
from scaling.core.report.axes import axes_of, training_time
from scaling.core.report.charts import further_charts, main_charts
from tests.core.report.folders import steps, write_lines, write_run


def run_of(folder: Path, **extra: float) -> Run:
    return read_run(write_run(folder, metrics=[line | extra for line in steps(1, 20)]))


def titles(*runs: Run) -> list[str]:
    return [chart.title for chart in main_charts(runs, [str(n) for n in range(len(runs))])]


def test_what_everybody_looks_at_comes_first(tmp_path: Path) -> None:
    plain = ["Loss", "Gradient norm", "Learning rate", "Tokens per second", "Peak memory"]
    assert titles(run_of(tmp_path / "a")) == plain
    more = run_of(tmp_path / "b", **{"training/mfu": 0.4, "training/data_wait_fraction": 0.1})
    assert titles(more) == [*plain[:4], "Model FLOPs utilisation", "Waiting for data", "Peak memory"]


def test_learning_rates_that_differ_are_figures_of_their_own(tmp_path: Path) -> None:
    same = {f"training/learning_rate_{group}": 0.1 for group in ("a", "b")}
    lines = [{"step": n, **same} for n in (1, 2)]
    write_lines(tmp_path / "same" / "metrics.jsonl", lines)
    assert titles(read_run(tmp_path / "same")) == ["Learning rate"]
    write_lines(tmp_path / "other" / "metrics.jsonl", [{**line, "training/learning_rate_b": 0.2} for line in lines])
    expected = ["Learning rate of a", "Learning rate of b"]
    assert titles(read_run(tmp_path / "other")) == expected
    assert titles(read_run(tmp_path / "same"), read_run(tmp_path / "other")) == expected


def test_everything_else_is_a_further_metric_or_named_as_left_out(tmp_path: Path) -> None:
    names = [f"statistics/{number:03}/rms" for number in range(100)]
    run = run_of(tmp_path / "a", **dict.fromkeys(names, 1.0), **{"own/metric": 2.0, "training/loss_scale": 1.0})
    charts, left = further_charts([run], ["a"])
    assert [chart.title for chart in charts][:3] == ["Loss scale", "Duration of a step", names[0]]
    assert [*(chart.title for chart in charts[2:]), *left] == [*names, "own/metric"]


def test_a_run_without_a_metric_is_left_out_of_its_figure(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a"), run_of(tmp_path / "b", **{"training/mfu": 0.4})]
    (chart,) = (chart for chart in main_charts(runs, ["a", "b"]) if chart.title == "Model FLOPs utilisation")
    assert [(curve.run, curve.name) for curve in chart.curves] == [(1, "b")]
    assert chart.curves[0].series.values[0] == 40.0


def test_time_is_the_sum_of_the_durations_of_all_steps_also_where_few_are_logged(tmp_path: Path) -> None:
    lines = [{"step": step, "training/step_duration": 0.5} for step in range(10, 101, 10)]
    write_lines(tmp_path / "run" / "metrics.jsonl", lines)
    time = training_time(read_run(tmp_path / "run"))
    assert time is not None
    assert (time.values[0], time.values[-1]) == (5.0, 50.0)


def test_an_axis_is_offered_where_all_runs_know_it(tmp_path: Path) -> None:
    known = run_of(tmp_path / "a")
    axes = axes_of([known])
    assert axes["tokens"][0] == [list(range(1, 21)), [2048.0 * n for n in range(1, 21)]]
    assert set(axes) == {"tokens", "time"}
    write_lines(tmp_path / "b" / "metrics.jsonl", [{"step": 1, "training/loss": 1.0, "training/step_duration": 1.0}])
    assert set(axes_of([known, read_run(tmp_path / "b")])) == {"time"}
