"""A whole run in one process: what it writes, what it ends with, and what it refuses before it begins."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaling.core.errors import ConfigError, ExitStatus, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.run_state import RunPhase, RunState
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.run import run_training
from scaling.core.trainer.state import RunIdentity
from tests.core.trainer.regression import make_trainer
from tests.core.trainer.test_trainer import Signals


def run(
    folder: Path,
    *,
    profile: int = 0,
    timeline: Path | None = None,
    torch_profiler: bool = False,
    seed: int = 42,
    hooks: Any = (),
    **options: Any,
) -> ExitStatus:
    """Train a regression, with checkpoints in `save` and logs in `log` unless options say otherwise."""
    values = {"save_dir": folder / "save", "train_iterations": 4, "log_interval": 2, **options}
    config = SimpleNamespace(
        trainer=TrainerConfig.from_dict({**values, "seed": seed}),
        logger=LoggerConfig(log_dir=folder / "log"),
        profiler=ProfilerConfig(
            profile_steps=profile,
            profile_start_at_step=2,
            profiler_output=timeline,
            torch_profiler=torch_profiler,
        ),
    )
    learner = make_trainer()[0].learner

    def resumed() -> None:
        events.append(f"resumed, {RunState.read(folder / 'log').step}")  # type: ignore[union-attr]  # it is there

    events: list[str] = []
    status = run_training(config, learner, RunIdentity(TrainerConfig()), hooks=hooks, once_resumed=resumed)
    assert events == ["resumed, 0"]
    return status


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_metrics_checkpoints_its_timeline_and_how_it_ended(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_interval": 1, "keep_last_checkpoints": 1, "keep_every_steps": 2}
    assert run(tmp_path, profile=2, **options) is ExitStatus.DONE
    state = RunState.read(tmp_path / "log")
    assert state is not None
    assert (state.state, state.step, state.exit_status) == (RunPhase.FINISHED, 4, 0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert {path.name for path in (tmp_path / "save").glob("global_step*")} == {"global_step2", "global_step4"}
    events = json.loads((tmp_path / "log" / "profile.json").read_text())["traceEvents"]
    for process in (0, 1):  # measured, simulated
        boxes = [event for event in events if event["ph"] == "X" and event["pid"] == process]
        names = [event["name"] for event in boxes if event["cat"] in ("forward", "backward")]
        assert Counter(names) == dict.fromkeys(["F0", "F1", "F2", "F3", "B0", "B1", "B2", "B3"], 2)  # of two steps
    assert sum(event.get("cat") == "checkpoint" for event in events) == 2
    elsewhere = tmp_path / "timelines" / "second.json"
    options["train_iterations"] = 6
    assert run(tmp_path, profile=1, timeline=elsewhere, torch_profiler=True, **options) is ExitStatus.DONE
    events = json.loads(elsewhere.read_text())["traceEvents"]
    forward = [event for event in events if event["ph"] == "X" and event["name"] == "F0" and event["pid"] == 0]
    products = [event for event in events if event["ph"] == "X" and event["name"] == "aten::addmm"]
    assert {event["pid"] for event in products} == {1000}
    # torch's clock is 0.1 ms off; its events of a micro-batch lie where the micro-batch is.
    assert any(forward[0]["ts"] - 1e3 < one["ts"] < forward[0]["ts"] + forward[0]["dur"] + 1e3 for one in products)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("saves", [True, False])
def test_a_run_that_was_asked_to_leave_says_so(tmp_path: Path, saves: bool) -> None:
    options: dict[str, Any] = {} if saves else {"save_dir": None}
    assert run(tmp_path, hooks=[Signals(1, signal.SIGTERM)], **options) is ExitStatus.PREEMPTED
    state = RunState.read(tmp_path / "log")
    assert state is not None
    assert (state.state, state.step, state.exit_status) == (RunPhase.PREEMPTED, 1, ExitStatus.PREEMPTED.value)
    assert state.reason == f"SIGTERM, {'saved' if saves else 'nothing saved: trainer.save_dir is null'}"
    assert not (tmp_path / "log" / "profile.json").exists()


def test_what_cannot_go_well_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.seed: is 7, but the program's recipe has seed 42"):
        run(tmp_path, seed=7)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"set trainer\.save_dir to another folder"):
        run(tmp_path, save_dir=tmp_path / "file" / "save")
    state = RunState.read(tmp_path / "log")
    assert state is not None
    assert (state.state, state.step) == (RunPhase.FAILED, 0)
