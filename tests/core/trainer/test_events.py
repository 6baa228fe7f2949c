"""The events of whole runs, one after the other in one file, and the summary at the end of each."""

from __future__ import annotations

import json
import logging
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaling.core.errors import DataRefusedError, ExitStatus
from scaling.core.logging.config import LoggerConfig
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.topology.launch import ATTEMPT_VARIABLE
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.run import run_training
from scaling.core.trainer.state import RunIdentity
from tests.core.trainer.regression import Points, make_trainer
from tests.core.trainer.test_trainer import Signals


def run(
    folder: Path,
    *,
    poison: int | None = None,
    hooks: Any = (),
    ranks: Any = None,
    commands: Any = ("look at it", "use it"),
    **options: Any,
) -> ExitStatus:
    """Train a regression of four steps, with a save and an evaluation after every second one."""
    intervals = {"log_interval": 1, "eval_interval": 2, "save_interval": 2}
    values = {"save_dir": folder / "save", "train_iterations": 4, **intervals, **options}
    config = SimpleNamespace(
        trainer=TrainerConfig.from_dict(values),
        logger=LoggerConfig(log_dir=folder / "log", metrics_ranks=ranks),
        profiler=ProfilerConfig(),
    )
    learner = make_trainer(training=Points(20, poison=poison), validation=Points(8))[0].learner
    return run_training(config, learner, RunIdentity(TrainerConfig()), hooks=hooks, next_commands=commands)


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the events without their times."""
    lines = (folder / "log" / "events.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


def test_attempts_are_told_of_from_their_start_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run(tmp_path, hooks=[Signals(3, signal.SIGTERM)]) is ExitStatus.PREEMPTED
    saved = str(tmp_path / "save" / "global_step3")
    assert [line.split()[0] for line in caplog.messages[-5:]] == ["loss", "evaluation", "checkpoint", "files", "next"]
    assert caplog.messages[-6].startswith("speed")
    assert caplog.messages[-7].startswith("pre-empted  3 steps, ")
    assert caplog.messages[-1] == "next        the same command goes on from there"
    caplog.clear()
    monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
    assert run(tmp_path) is ExitStatus.DONE
    assert f"resumed from {saved} at step 3" in caplog.messages
    assert caplog.messages[-2:] == ["next        look at it", "            use it"]
    told = events(tmp_path)
    assert [(event["event"], event["step"]) for event in told] == [
        *(("started", 0), ("evaluation", 2), ("checkpoint", 2), ("leaving", 3), ("checkpoint", 3), ("ended", 3)),
        *(("started", 3), ("evaluation", 4), ("checkpoint", 4), ("ended", 4)),
    ]
    first, second = (event for event in told if event["event"] == "started")
    assert first == {
        **{"step": 0, "event": "started", "attempt": 1, "resumed_from": None},
        **{"total_steps": 4, "world_size": 1},
    }
    assert (second["attempt"], second["resumed_from"]) == (2, saved)
    assert {event["path"] for event in told if event["step"] == 3 and "path" in event} == {saved}
    assert [(event["state"], event["reason"]) for event in told if event["event"] == "ended"] == [
        ("pre-empted", "SIGTERM, saved"),
        ("finished", None),
    ]


def test_what_is_trained_is_said_once_and_where_no_command_is_named_the_report_comes_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path / "my run", commands=())
    (said,) = [line for line in caplog.messages if " parameters" in line]
    assert re.fullmatch(r"[1-9][0-9,]* parameters, pipe 1 x data 1 x model 1 on cpu", said)
    assert caplog.messages[0] == said
    assert caplog.messages[-1] == f"next        scaling report '{tmp_path}/my run/log'"


def test_steps_that_were_not_finite_and_a_failure_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(DataRefusedError):
        run(tmp_path, poison=3, train_iterations=9, max_consecutive_nonfinite_steps=0)
    kinds = [event["event"] for event in events(tmp_path)]
    assert kinds[-3:] == ["skipped", "nonfinite", "ended"]
    ended = events(tmp_path)[-1]
    assert ended["state"] == "failed"
    assert ended["reason"].startswith("rank 0: the gradients of 1 steps in a row")
    assert not [line for line in caplog.messages if line.startswith("finished")]
    step = ended["step"]
    assert f"step {step}/9 skipped reason the gradients were not finite" in caplog.messages


def test_a_run_that_shows_no_metrics_keeps_its_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert run(tmp_path, ranks=[]) is ExitStatus.DONE
    assert not [line for line in caplog.messages if "evaluation loss" in line or line.startswith("step 4/4 loss")]
    assert [event["event"] for event in events(tmp_path)].count("evaluation") == 2


def test_a_start_that_trains_nothing_has_no_summary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path)
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert run(tmp_path) is ExitStatus.DONE
    assert "nothing is left to train" in caplog.text
    assert "finished" not in caplog.text
