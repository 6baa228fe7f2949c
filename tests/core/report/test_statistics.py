"""Statistics of tensors in a report: every kind is drawn, a line for each tensor, and a page stays small."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from scaling.core import Run, read_run
from scaling.core.report.charts import further_charts
from scaling.core.report.scales import Scale
from scaling.core.report.statistics import draw_statistics, statistic_of
from tests.core.report.folders import write_lines

KINDS = ("parameters", "parameter_gradients", "activations", "activation_gradients")
STEPS = Scale(0, 4)


def run_with(folder: Path, tensors: Sequence[str], *, statistics: Sequence[str] = ("rms", "abs_max")) -> Run:
    values = {f"statistics/{kind}/{name}/{one}": 2.0 for kind in KINDS for name in tensors for one in statistics}
    write_lines(folder / "metrics.jsonl", [{"step": step, "own/metric": 1.0, **values} for step in (1, 2, 3)])
    return read_run(folder)


def drawn(run: Run) -> str:
    (section,) = draw_statistics([run], STEPS)
    assert section is not None
    return section


def layers(count: int) -> list[str]:
    return [f"layers.{number}.mlp.weight" for number in range(count)]


@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        ("statistics/parameters/layers.11.mlp.weight/rms", ("parameters", "layers.11.mlp.weight", "rms", 11)),
        ("statistics/activations/a/b/mean", ("activations", "a/b", "mean", None)),
    ],
)
def test_a_key_says_kind_tensor_and_statistic(metric: str, parts: tuple[object, ...]) -> None:
    found = statistic_of(metric)
    assert found is not None
    assert (found.kind, found.tensor, found.statistic, found.layer) == parts


@pytest.mark.parametrize("metric", ["statistics/other/w/rms", "statistics/parameters/rms", "training/loss"])
def test_other_keys_are_further_metrics(metric: str) -> None:
    assert statistic_of(metric) is None


def test_each_kind_and_statistic_is_a_figure_with_a_line_for_each_tensor(tmp_path: Path) -> None:
    run = run_with(tmp_path, layers(10))
    section = drawn(run)
    assert re.findall(r"<summary>(.*?)</summary>", section) == [
        f"{kind} (2)" for kind in ("Parameters", "Gradients of parameters", "Activations", "Gradients of activations")
    ]
    assert re.findall(r"<h3>(.*?)</h3>", section) == ["abs_max", "rms"] * 4
    for figure in section.split("<figure")[1:]:
        assert re.findall("<title>(.*?)</title>", figure) == layers(10)
        assert "From the first layer, blue, to the last, orange." in figure
        assert "evenly chosen" not in figure
        assert figure.count("layers.9.") == 1  # no legend
    charts, left = further_charts([run], ["a"])
    assert ([chart.title for chart in charts], left) == (["own/metric"], [])


def test_the_colour_goes_with_the_layer_and_few_lines_have_a_legend(tmp_path: Path) -> None:
    section = drawn(run_with(tmp_path, ["layers.10.w", "layers.0.w", "layers.5.w", "head"], statistics=["rms"]))
    figure = section.split("<figure")[1]
    titles, colours = re.findall("<title>(.*?)</title>", figure), re.findall(r'<path[^>]*style="--c:(.*?)"', figure)
    assert list(zip(titles, colours, strict=True)) == [
        ("head", "var(--c7)"),
        ("layers.0.w", "hsl(220 65% 52%)"),
        ("layers.5.w", "hsl(300 65% 52%)"),
        ("layers.10.w", "hsl(20 65% 52%)"),
    ]
    assert all(f"</i>{name}</span>" in figure for name in titles)


def test_of_many_tensors_some_are_chosen_evenly_and_their_number_is_said(tmp_path: Path) -> None:
    section = drawn(run_with(tmp_path, layers(127), statistics=["rms"]))
    figure = section.split("<figure")[1]
    assert re.findall("<title>(.*?)</title>", figure) == layers(127)[::2]
    assert "64 of 127 tensors, evenly chosen." in figure


def test_all_statistics_of_a_large_model_are_a_small_page(tmp_path: Path) -> None:
    values = {
        f"statistics/{kind}/{name}/statistic_{number}": 1.0
        for kind in KINDS
        for name in layers(70)
        for number in range(30)
    }
    write_lines(tmp_path / "metrics.jsonl", [{"step": step, **values} for step in range(40)])
    section = drawn(read_run(tmp_path))
    assert section.count("<figure") == 120
    assert len(section) < 2**20


def test_runs_are_drawn_each_for_itself_and_one_without_statistics_not_at_all(tmp_path: Path) -> None:
    write_lines(tmp_path / "without" / "metrics.jsonl", [{"step": 1, "training/loss": 1.0}])
    runs = [read_run(tmp_path / "without"), run_with(tmp_path / "with", layers(2))]
    first, second = draw_statistics(runs, STEPS)
    assert first is None
    assert set(re.findall(r'data-run="(.*?)"', second or "")) == {"1"}


def test_a_tensor_that_was_not_finite_is_named(tmp_path: Path) -> None:
    key = "statistics/parameters/layers.1.w/rms"
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, key: 1.0}, {"step": 1, key: float("nan")}])
    assert "Not always finite: layers.1.w from step 1 on." in drawn(read_run(tmp_path))
