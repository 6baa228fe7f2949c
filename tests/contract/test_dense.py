"""The engine in one process computes what a plain program computes: losses, gradients, updates and evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.dense import dense_run
from tests.contract.models import MODELS, recipe, without_dropout
from tests.contract.runs import Job, differences, follow


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_one_process_computes_what_a_plain_program_does(model: str, steps: int, tmp_path: Path) -> None:
    config = without_dropout(model)
    reference = dense_run(config, recipe(config), tmp_path, steps=steps)
    ((name, runs),) = follow(reference.directory, [Job("engine", recipe(config), config.topology, steps)]).items()
    found = differences(reference, name, runs)
    assert max(relative for relative, _ in found.values()) < 1e-10, found
