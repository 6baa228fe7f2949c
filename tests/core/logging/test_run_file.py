"""run.json is shared by a run's processes and the one that starts them, which has no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.core.logging.run_file import ATTEMPTS, RUN_FILE, read_run_file, write_attempts
from tests.transformer.small import command_environment


def test_attempts_take_the_place_of_those_before_and_leave_the_rest(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps({"started": "today", ATTEMPTS: [{"attempt": 7}]}))
    write_attempts(tmp_path, [{"attempt": 1}])
    assert read_run_file(tmp_path) == {"started": "today", ATTEMPTS: [{"attempt": 1}]}


@pytest.mark.parametrize("text", [None, "", "[1]", "{", "\xff"])
def test_a_file_that_says_nothing_counts_as_empty(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / RUN_FILE).write_text(text, encoding="latin-1")
    assert read_run_file(tmp_path) == {}


def test_what_starts_a_training_imports_no_torch() -> None:
    program = "import sys, scaling.transformer.launch, examples.transformer_example.run\nprint('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=command_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"
