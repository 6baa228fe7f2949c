"""run_state.json through the life of a run: who writes what, and which failure is kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import CheckpointError, StorageError
from scaling.core.logging.run_state import RunPhase, RunState, RunStateRecorder


def state(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "run_state.json").read_text())
    return values


def test_the_life_of_a_run(tmp_path: Path) -> None:
    with RunStateRecorder(tmp_path / "run") as recorder:
        assert (state(tmp_path / "run")["state"], state(tmp_path / "run")["step"]) == ("running", 0)
        recorder.running(5)
        assert state(tmp_path / "run")["step"] == 5
        recorder.finished(10)
    assert {key: state(tmp_path / "run")[key] for key in ("state", "step", "exit_status")} == {
        "state": "finished",
        "step": 10,
        "exit_status": 0,
    }


def test_a_preempted_run_says_why_and_what_it_ends_with(tmp_path: Path) -> None:
    with RunStateRecorder(tmp_path) as recorder:
        recorder.preempted(7, "SIGTERM")
    found = state(tmp_path)
    assert (found["state"], found["step"], found["reason"], found["exit_status"]) == ("pre-empted", 7, "SIGTERM", 75)


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [(CheckpointError("no such folder"), "no such folder", 2), (ValueError("boom"), "ValueError: boom", 1)],
)
def test_a_failure_is_recorded_with_its_cause(tmp_path: Path, error: Exception, reason: str, status: int) -> None:
    def run() -> None:
        with RunStateRecorder(tmp_path) as recorder:
            recorder.running(3)
            raise error

    with pytest.raises(type(error)):
        run()
    found = RunState.read(tmp_path)
    assert found is not None
    assert (found.state, found.step, found.exit_status) == (RunPhase.FAILED, 3, status)
    assert found.reason == f"rank 0: {reason}"


def test_the_first_rank_that_fails_names_the_cause(tmp_path: Path) -> None:
    def fail(recorder: RunStateRecorder, message: str) -> None:
        with pytest.raises(RuntimeError), recorder:
            raise RuntimeError(message)

    with RunStateRecorder(tmp_path, rank=0):
        pass
    others = [RunStateRecorder(tmp_path, rank=rank) for rank in (1, 2)]
    fail(others[1], "the cause")
    fail(others[0], "a consequence")
    assert state(tmp_path)["reason"] == "rank 2: RuntimeError: the cause"


def test_the_failure_of_an_earlier_start_does_not_hide_a_new_one(tmp_path: Path) -> None:
    RunState(state=RunPhase.FAILED, reason="old", updated="2001-01-01T00:00:00+00:00").write(tmp_path)
    with pytest.raises(RuntimeError), RunStateRecorder(tmp_path, rank=1):
        raise RuntimeError("new")
    assert "new" in state(tmp_path)["reason"]


def test_an_interruption_counts_as_preemption(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunStateRecorder(tmp_path):
        raise KeyboardInterrupt
    assert state(tmp_path)["state"] == "pre-empted"


def test_other_ranks_write_failures_only(tmp_path: Path) -> None:
    with RunStateRecorder(tmp_path, rank=1) as recorder:
        recorder.running(1)
        recorder.finished(2)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError), RunStateRecorder(None):
        raise RuntimeError
    with RunStateRecorder(None) as recorder:
        recorder.running(1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_at_the_start_and_a_warning_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"logger\.log_dir"), RunStateRecorder(tmp_path / "file"):
        pass
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING), RunStateRecorder(folder) as recorder:
        (folder / "run_state.json").unlink()
        folder.rmdir()
        for step in range(1, 8):
            recorder.running(step)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "cannot be written" in said[0]
    assert said[1] == "run_state.json could not be written 7 times"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "asleep"}', '{"state": "running", "unknown": 1}'])
def test_what_cannot_be_understood_reads_as_no_state(tmp_path: Path, text: str) -> None:
    (tmp_path / "run_state.json").write_text(text)
    assert RunState.read(tmp_path) is None
