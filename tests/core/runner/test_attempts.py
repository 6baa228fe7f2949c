"""Which failures a run is started again after, and what is written down about each attempt."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scaling.core.errors import ConfigError, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.provenance import write_run_files
from scaling.core.logging.run_state import RunPhase, RunState
from scaling.core.runner.attempts import restarts, run_attempts, tell
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.main import runner_main
from scaling.core.runner.outcome import HostLoss, Outcome
from scaling.core.runner.supervisor import Supervisor
from tests.core.logging.terminals import Terminal
from tests.core.storage.test_lock import another_process

DONE = Outcome(status=0)
LOST = Outcome(status=1, cause=HostLoss(host="h2", ranks=(2, 3), why="no route"))
NAMED = "host h2 (ranks 2, 3) is gone: no route"


class Staged:
    """A job whose attempts end as given; `signals` asks the run to leave while an attempt is prepared, by number."""

    processes = 4

    def __init__(self, *results: Outcome, signals: Sequence[int] = (), problem_at: int | None = None) -> None:
        self._results = results
        self._signals = signals
        self._problem_at = problem_at
        self.did: list[str] = []

    def supervisor(self) -> Supervisor:
        return Supervisor()

    def prepare(self, attempt: int) -> None:
        self.did.append(f"prepare {attempt}")
        if attempt in self._signals:
            os.kill(os.getpid(), signal.SIGTERM)
        if attempt == self._problem_at:
            raise ConfigError("h2 does not answer")

    def run(self, attempt: int, supervisor: Supervisor) -> Outcome:
        self.did.append(f"run {attempt}")
        return self._results[attempt]


@pytest.mark.parametrize("status", [1, 70, 74, 128 + 6, 128 + 9, 128 + 11, 128 + 15])
def test_a_failure_is_followed_by_another_attempt_while_there_are_some(status: int) -> None:
    assert [restarts(status, attempt, 2) for attempt in range(4)] == [True, True, False, False]
    assert not restarts(status, 0, 0)


@pytest.mark.parametrize("status", [0, 2, 65, 75, 128 + 13])
def test_what_is_done_left_or_for_the_user_to_mend_is_not_started_again(status: int) -> None:
    assert not restarts(status, 0, 9)


def test_a_run_is_started_again_until_it_is_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Staged(LOST, DONE)
    assert run_attempts(job, max_restarts=2, log_dir=tmp_path) == 0
    assert job.did == ["prepare 0", "run 0", "prepare 1", "run 1"]
    assert capfd.readouterr().err == f"attempt 1 of 3 ended: {NAMED}; starting again from the newest checkpoint\n"
    first, second = json.loads((tmp_path / "run.json").read_text())["attempts"]
    assert (first["attempt"], first["status"], first["reason"], first["host"]) == (1, 1, NAMED, "h2")
    assert (second["attempt"], second["status"], second["reason"], second["host"]) == (2, 0, None, None)
    assert set(first) == {"attempt", "started", "ended", "status", "reason", "host"}
    assert RunState.read(tmp_path) is None  # that of the trainer stays


def test_the_last_failure_is_told_in_full_and_recorded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_attempts(Staged(LOST, LOST), max_restarts=1, log_dir=tmp_path) == 1
    assert capfd.readouterr().err.endswith(
        f"\nThe other 2 processes were stopped.\nerror: {NAMED}\ntry: look at that machine, or leave it out of "
        "runner.hosts; the same command goes on from the newest checkpoint, if there is one\n"
    )
    state = RunState.read(tmp_path)
    assert state is not None
    assert (state.state, state.reason, state.exit_status) == (RunPhase.FAILED, NAMED, 1)
    assert len(json.loads((tmp_path / "run.json").read_text())["attempts"]) == 2


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_attempts(Staged(LOST), max_restarts=0, log_dir=None) == 1
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_folder_keeps_its_record(tmp_path: Path) -> None:
    with another_process(tmp_path):
        before = sorted(path.name for path in tmp_path.iterdir())
        assert run_attempts(Staged(LOST), max_restarts=0, log_dir=tmp_path) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("number", "when"), [(0, "before training began"), (1, "between two attempts")])
def test_a_signal_before_an_attempt_leaves(tmp_path: Path, number: int, when: str) -> None:
    job = Staged(LOST, DONE, signals=[number])
    assert run_attempts(job, max_restarts=3, log_dir=tmp_path) == 75
    assert job.did[-1] == f"prepare {number}"
    state = RunState.read(tmp_path)
    assert state is not None
    assert (state.state, state.reason) == (RunPhase.PREEMPTED, f"SIGTERM {when}")


def test_a_run_that_was_asked_to_leave_is_not_started_again(tmp_path: Path) -> None:
    class Asked(Staged):
        def run(self, attempt: int, supervisor: Supervisor) -> Outcome:
            supervisor.asked = signal.SIGUSR1
            return super().run(attempt, supervisor)

    job = Asked(Outcome(status=74), DONE)
    assert run_attempts(job, max_restarts=3, log_dir=tmp_path) == 74
    assert job.did == ["prepare 0", "run 0"]


def test_machines_that_cannot_do_the_work_end_a_run_by_their_table_at_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h2 does not answer"):
        run_attempts(Staged(problem_at=0), max_restarts=3, log_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_machines_that_cannot_do_the_work_again_end_a_run_as_it_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_attempts(Staged(LOST, problem_at=1), max_restarts=3, log_dir=tmp_path) == 1
    assert capfd.readouterr().err.endswith("error: h2 does not answer\n")
    state = RunState.read(tmp_path)
    assert state is not None
    assert state.reason == NAMED


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_of_this_machine_are_started_again(
    processes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that fails in its first attempt, and that writes run.json as a training does."""
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    script = tmp_path / "training.py"
    script.write_text(
        "import json, os, sys\nfrom pathlib import Path\n"
        "from scaling.core.logging.config import LoggerConfig\n"
        "from scaling.core.logging.provenance import write_run_files\n"
        "from scaling.core.runner.process import run_process\n"
        "from scaling.core.errors import StorageError\n"
        "from scaling.core.topology.launch import LaunchContext\n"
        "def main():\n"
        "    launch, log = LaunchContext.from_environment(), Path(sys.argv[1]).parent / 'log'\n"
        "    write_run_files(log, LoggerConfig(), layout={}, data_fingerprint='new', rank=launch.rank,"
        " attempt=launch.attempt)\n"
        "    (log.parent / f'port_{launch.attempt}').write_text(str(launch.master_port))\n"
        "    if launch.attempt == 0:\n        raise StorageError('the disk is full')\n"
        "run_process(main)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = min(free.getsockname()[1], 65000)
    config = RunnerConfig.from_dict({"max_restarts": 1, "master_port": port})
    arguments = {"module_or_script": str(script), "config_path": tmp_path / "config.yml", "processes": processes}
    for _ in range(2):  # a new command begins a list of its own
        assert runner_main(config, **arguments, log_dir=tmp_path / "log") == 0  # type: ignore[arg-type]  # by name
        values = json.loads((tmp_path / "log" / "run.json").read_text())
        assert [(one["attempt"], one["status"]) for one in values["attempts"]] == [(1, 74), (2, 0)]
        assert values["data_fingerprint"] == "new"
    assert "the disk is full; starting again from the newest checkpoint\n" in capfd.readouterr().err
    ports = [(tmp_path / f"port_{attempt}").read_text() for attempt in range(2)]
    assert ports == (["None", "None"] if processes == 1 else [str(port), str(port + 1)])


@pytest.mark.parametrize(("attempt", "kept"), [(0, False), (1, True)])
def test_a_training_keeps_the_attempts_before_its_own(attempt: int, kept: bool, tmp_path: Path) -> None:
    run_attempts(Staged(LOST), max_restarts=0, log_dir=tmp_path)
    write_run_files(tmp_path, LoggerConfig(), layout={}, data_fingerprint=None, attempt=attempt)
    assert ("attempts" in json.loads((tmp_path / "run.json").read_text())) == kept


def test_an_error_while_an_attempt_starts_passes_through(tmp_path: Path) -> None:
    class Broken(Staged):
        def run(self, attempt: int, supervisor: Supervisor) -> Outcome:
            raise StorageError("no space")

    with pytest.raises(StorageError, match="no space"):
        run_attempts(Broken(), max_restarts=3, log_dir=tmp_path)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_live_line_that_a_killed_process_has_left_is_erased(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal() if is_terminal else io.StringIO())
    tell(LOST, processes=4)
    assert shown.getvalue().startswith("\x1b[JThe other 2" if is_terminal else "The other 2")
