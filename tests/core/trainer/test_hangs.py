"""A rank that stays away is named to all others with status 70, whatever the run does and in whatever layout."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest

from scaling.core.errors import ExitStatus
from scaling.core.topology import watch
from tests.core.trainer.moments import LAYOUTS, cases, ranks_of, stay, train_until
from tests.core.trainer.regression import make_trainer
from tests.distributed import run_world

PATIENCE = 1.5
PHASES = {
    "start-up": "the program",
    "loading": "loading a checkpoint",
    "first data": "the beginning of training, waiting for data",
    "training": "step 2",
    "data": "step 2, waiting for data",
    "evaluation": "the evaluation after step 1",
    "evaluation data": "the evaluation after step 1, waiting for data",
    "saving": "saving step 1",
}
"""What each moment is called."""
FAST = [("loading", {"data": 2}), ("data", {"pipe": 2}), ("evaluation", {"model": 2})]


def stop() -> None:
    """Stop this process, which is not ended before the others have come to a verdict."""
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(rank: int, world_size: int, moment: str, stops: bool, layout: Mapping[str, int], directory: Path) -> None:
    """Train until the last rank stays away, and write down what a hang is called."""
    threading.excepthook = lambda arguments: (directory / str(rank)).write_text(str(arguments.exc_value)) and None
    act = stop if stops else stay
    with mock.patch.object(watch, "_ANSWER_SECONDS", 1.0):
        train_until(moment, act, layout, directory / "checkpoints", process_group_timeout_seconds=PATIENCE)


@pytest.mark.parametrize(("moment", "layout"), cases(PHASES, FAST, fewest=2))
def test_who_stays_away_is_named_whatever_the_run_does(moment: str, layout: Mapping[str, int], tmp_path: Path) -> None:
    if moment == "loading":
        make_trainer(save_dir=tmp_path / "checkpoints", train_iterations=1)[0].fit()
    last = ranks_of(layout) - 1
    outcomes = run_world(hang, last + 1, moment, False, layout, tmp_path, timeout=60, grace=10)
    for rank, outcome in enumerate(outcomes):
        assert outcome.exit_code == ExitStatus.HANG, outcome.report
        message = (tmp_path / str(rank)).read_text()
        assert f"rank {last} did not come within 1.5 s" in message
        assert f"rank {last} is in {PHASES[moment]} (" in message


@pytest.mark.slow
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if ranks_of(layout) > 1], ids=str)
def test_a_rank_that_is_stopped_is_named(layout: Mapping[str, int], tmp_path: Path) -> None:
    last = ranks_of(layout) - 1
    outcomes = run_world(hang, last + 1, "training", True, layout, tmp_path, timeout=60, grace=3)
    for rank, outcome in enumerate(outcomes[:last]):
        assert outcome.exit_code == ExitStatus.HANG, outcome.report
        message = (tmp_path / str(rank)).read_text()
        assert f"rank {last} does not react, its process or its machine has stopped" in message
