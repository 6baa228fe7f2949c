"""The judge of the fault matrix finds every way of not ending as declared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scaling.core import ConfigError
from tests.distributed import Outcome
from tests.faults.engine import Scene, Source, Undisturbed, end_of
from tests.faults.matrix import Case, End, Refuse, Survive, Verdict, judge, table, to_json

WANTED = {"weight": torch.tensor([1.0, 2.0]), "step": 6}
ALMOST = {"weight": torch.tensor([1.0, 2.0000002]), "step": 6}
ELSEWHERE = {"weight": torch.tensor([1.0, 2.0]), "step": 5}


@pytest.fixture
def stage(tmp_path: Path) -> Scene:
    run = Undisturbed(Source(tmp_path), {}, tmp_path, End(0, state=WANTED))
    return Scene(tmp_path, run, run)


@pytest.mark.parametrize(
    ("expected", "end", "verdict"),
    [
        (Survive(), End(0, state=WANTED), Verdict.SURVIVED),
        (Survive(), End(0, state=ALMOST), Verdict.SILENT),
        (Survive(within=1e-6), End(0, state=ALMOST), Verdict.SURVIVED),
        (Survive(within=1e-6), End(0, state=ELSEWHERE), Verdict.SILENT),
        (Survive(), End(0, state={"step": 6}), Verdict.SILENT),
        (Survive(), End(1, "no"), Verdict.CRASH),
        (Survive(), End(70, "stacks", hung=True), Verdict.HANG),
        (Refuse(2, "no .* here"), End(2, "no place here"), Verdict.REFUSED),
        (Refuse(2, "no .* here"), End(2, "something else"), Verdict.CRASH),
        (Refuse(2, "no .* here"), End(1, "no place here"), Verdict.CRASH),
        (Refuse(2, "no .* here"), End(0, state=WANTED), Verdict.SILENT),
        (Refuse(2, "no .* here"), End(70, "no place here", hung=True), Verdict.HANG),
    ],
)
def test_an_end_is_judged_by_what_was_declared(
    expected: Survive | Refuse, end: End, verdict: Verdict, stage: Scene
) -> None:
    def play(scene: Scene) -> End:
        scene.watch()
        return end

    result = judge(Case("S", "a fault", expected, play), stage)
    assert result.verdict is verdict
    assert result.is_good == (verdict in (Verdict.SURVIVED, Verdict.REFUSED))


def test_what_is_refused_must_not_have_been_written(stage: Scene) -> None:
    def play(scene: Scene) -> End:
        scene.watch()
        (scene.folder / "left").touch()
        return End(2, "refused")

    result = judge(Case("D", "a fault", Refuse(2, "refused"), play), stage)
    assert (result.verdict, result.reason) == (Verdict.SILENT, "written although refused: left")


def test_ranks_end_together_with_the_first_cause() -> None:
    refused = Outcome(error=ConfigError("no"), report="raised", time=1.0)
    assert end_of([refused, Outcome(report="was ended, because", time=2.0)]).status == 2
    assert end_of([Outcome(exit_code=-9, report="died", time=2.0), refused]).status == 137
    assert end_of([Outcome(report="was not done after 40 s", time=2.0), refused]).hung


def test_the_table_ends_with_the_figure(stage: Scene) -> None:
    good = Case("S", "one fault", Survive(), lambda scene: End(0, state=WANTED))
    bad = Case("S", "another fault", Survive(), lambda scene: End(1, "broken"))
    results = [judge(case, stage) for case in (good, bad)]
    assert table(results)[-2:] == ["group S: 1/2", "faults survived or refused / tried: 1/2"]
    assert json.loads(to_json(results))["counts"] == {"survived": 1, "CRASH": 1}
