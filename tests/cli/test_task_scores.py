"""The numbers of tasks are shown as a table that a person reads, and as JSON that a program reads."""

from __future__ import annotations

import json

import pytest

from scaling.cli.task_scores import rows_of, show_scores
from scaling.transformer.evaluation.tasks import TaskScore

SCORES = (
    TaskScore("law", "acc", 0.51239, 0.1, "none", 5, 1200, True),
    TaskScore("law", "f1", 1.0, None, "strict", 5, 1200, None),
    TaskScore("[b]odd", "bits_per_byte", 1.25, None, "none", None, None, False),
)


def test_a_table_has_each_number_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_scores(SCORES)
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells == [
        ["law", "acc ↑", "0.5124", "± 0.1000", "5", "1,200"],
        ["", "f1 (strict)", "1.0000", "", "5", "1,200"],
        ["[b]odd", "bits_per_byte ↓", "1.2500", "", "", ""],
    ]


def test_json_has_all_that_is_known() -> None:
    assert json.loads(json.dumps(rows_of(SCORES)))[0] == {
        "task": "law",
        "metric": "acc",
        "value": 0.51239,
        "error": 0.1,
        "filter": "none",
        "shots": 5,
        "samples": 1200,
        "higher_is_better": True,
    }
