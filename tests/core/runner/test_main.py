"""The runner with real processes. Those that need no signal to the runner itself start it from the test's process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaling.core.errors import ConfigError, LayoutError
from scaling.core.logging.run_state import RunPhase, RunState
from scaling.core.runner import environment, supervisor
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.cores import available_cores
from scaling.core.runner.local import process_environment
from scaling.core.runner.main import runner_main
from tests.core.storage.test_lock import another_process
from tests.processes import is_running, wait_until

WORKER = Path(__file__).with_name("worker_script.py")
START = Path(__file__).with_name("start_script.py")

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _impatient_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's store asks who 127.0.0.1 is; where no name server answers, that takes 5 seconds unless told otherwise."""
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the worker script through the runner; returns the status."""

    def run_here(*behaviours: str, processes: int = 1, config: RunnerConfig | None = None) -> int:
        return runner_main(
            config or RunnerConfig(),
            module_or_script=str(WORKER),
            config_path=tmp_path / "config.yml",
            overrides=behaviours,
            processes=processes,
            log_dir=tmp_path / "log",
        )

    return run_here


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the runner in a process of its own, to be sent signals."""
    started: list[subprocess.Popen[str]] = []

    def start_it(*behaviours: str, processes: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, str(START), str(processes), str(tmp_path / "config.yml"), *behaviours]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")])}
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


def wait_for(paths: list[Path]) -> None:
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths), f"{paths} did not appear")


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("pid_*"))]


def assert_gone(folder: Path) -> None:
    """No process that the run started is there any more."""
    assert pids(folder)
    wait_until(lambda: not any(map(is_running, pids(folder))), "a process was left behind")


@pytest.mark.parametrize(
    ("behaviour", "status", "message"),
    [
        ("ok", 0, ""),
        ("raise:ConfigError", 2, "error: this is a ConfigError\n"),
        ("raise:DataRefusedError", 65, "error: this is a DataRefusedError\n"),
        ("raise:StorageError", 74, "error: this is a StorageError\n"),
        ("exit:70", 70, "error: the process ended with status 70; its output says why, if anything does\n"),
        ("exit:75", 75, ""),
        ("signal:9", 137, "error: the process was ended by SIGKILL; if nobody did that by hand, the machine ran out"),
    ],
)
def test_the_status_and_the_message_of_a_process_are_the_runners(
    run: Run, capfd: pytest.CaptureFixture[str], behaviour: str, status: int, message: str
) -> None:
    assert run(behaviour) == status
    shown = capfd.readouterr().err
    assert shown.startswith(message)
    assert bool(shown) == bool(message)


@pytest.mark.parametrize(
    ("processes", "of_the_machine", "threads"), [(1, 4, None), (1, 8, "4"), (2, 4, "2"), (1, None, None)]
)
def test_threads_are_bounded_where_not_all_cores_are_a_processes_own(
    processes: int, of_the_machine: int | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment, "available_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: of_the_machine)
    with process_environment(processes, gpus=None, script=False):
        assert os.environ.get("OMP_NUM_THREADS") == threads


def test_an_unexpected_error_shows_its_traceback_once_and_last_what_to_try(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("fail") == 1
    shown = capfd.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.count("RuntimeError: unexpected") == 2  # the end of the traceback, and the summary
    error, advice = shown.splitlines()[-2:]
    assert error == "error: RuntimeError: unexpected"
    assert advice == (
        f"try: the traceback above names the line that failed; its log is {tmp_path / 'log' / 'rank_0.log'}; the same "
        "command goes on from the newest checkpoint, if there is one"
    )
    assert "run_process" not in shown


def test_one_failure_stops_all_and_is_what_the_user_reads(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.5)
    started = time.monotonic()
    assert run("stubborn", "raise:DataError", "listen:600", processes=3) == 2
    assert time.monotonic() - started < 100
    assert_gone(tmp_path)
    here = socket.gethostname()
    assert capfd.readouterr().err == (
        f"The other 2 processes were stopped.\nerror: rank 1 on {here}: this is a DataError\n"
    )
    state = RunState.read(tmp_path / "log")
    assert state is not None
    assert (state.state, state.reason, state.exit_status) == (RunPhase.FAILED, "rank 1: this is a DataError", 2)
    assert state.step == 0


def test_a_run_that_fails_beside_another_one_leaves_its_state_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    theirs = RunState(state=RunPhase.RUNNING, step=7)
    theirs.write(tmp_path / "log")
    with another_process(tmp_path / "log"):
        assert run("raise:StorageError") == 74
    assert RunState.read(tmp_path / "log") == theirs


def test_a_killed_process_is_the_cause_of_what_others_report(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("fail_without:1", "signal:9", processes=2) == 137
    shown = capfd.readouterr().err
    assert shown.startswith("The other process was stopped.\n")
    error, advice = shown.splitlines()[1:]
    assert error.startswith(f"error: rank 1 on {socket.gethostname()}: the process was ended by SIGKILL")
    assert advice.startswith("try: lower topology.micro_batch_size")
    assert "unexpected" not in shown


def test_what_is_wrong_for_all_is_said_once(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("raise:ConfigError", processes=2) == 2
    shown = capfd.readouterr().err
    assert shown.count("this is a ConfigError") == 1
    assert "Traceback" not in shown


def test_processes_are_given_the_contract_and_nothing_secret(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    assert run("tell", "tell", processes=2, config=RunnerConfig(hosts=["localhost slots=3,5"])) == 0
    given: list[dict[str, Any]] = [json.loads((tmp_path / f"given_{rank}.json").read_text()) for rank in range(2)]
    assert [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"]) for one in given] == [("0", "0", "2"), ("1", "1", "2")]
    assert given[0]["MASTER_PORT"] == given[1]["MASTER_PORT"]
    assert given[0]["OMP_NUM_THREADS"] == str(max(1, available_cores() // 2))
    assert given[0]["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert given[0]["argv"] == [str(WORKER), str(tmp_path / "config.yml"), "tell", "tell"]
    assert dict(os.environ) == before


READER = """
import sys
from pathlib import Path
from scaling.core.config.config_file import read_config
from scaling.core.topology.launch import LaunchContext

launch = LaunchContext.from_environment()
Path(sys.argv[0]).with_name(f"read_{launch.rank}").write_text(read_config(sys.argv[1], copy=launch.config_copy))
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_the_processes_are_given_what_was_read_of_a_file_that_may_be_gone(tmp_path: Path, processes: int) -> None:
    script = tmp_path / "reader.py"
    script.write_text(READER)
    before = dict(os.environ)
    text = "trainer: {seed: 1}  # as checked, \u00fc"
    status = runner_main(
        RunnerConfig(), module_or_script=str(script), config_path="/dev/null", config_text=text, processes=processes
    )
    assert status == 0
    assert [path.read_text() for path in sorted(tmp_path.glob("read_*"))] == [text] * processes
    assert dict(os.environ) == before


def test_what_the_user_has_set_stays(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run("tell") == 0
    assert json.loads((tmp_path / "given_0.json").read_text())["OMP_NUM_THREADS"] == "7"


def test_a_port_in_use_is_named(run: Run) -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        with pytest.raises(LayoutError, match=rf"port {port} .*runner\.master_port"):
            run("ok", processes=2, config=RunnerConfig(master_port=port))


def test_inside_a_launcher_this_process_does_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    assert run("tell", processes=8) == 0
    assert pids(tmp_path) == [os.getpid()]
    assert run("exit:75") == 75
    assert (sys.argv, signal.getsignal(signal.SIGTERM)) == (argv, handler)


def test_a_module_runs_like_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text("import sys; sys.exit(0 if sys.argv[1:] == ['config.yml', 'a=1'] else 9)")
    monkeypatch.chdir(tmp_path)

    def run_it() -> int:
        return runner_main(
            RunnerConfig(), module_or_script="program", config_path="config.yml", overrides=["a=1"], processes=1
        )

    assert run_it() == 0
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_it() == 0


def test_the_configured_script_comes_before_the_programs_own(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("raise SystemExit(65)")
    config = RunnerConfig(script=script)
    assert runner_main(config, module_or_script="no.such.module", config_path="c.yml", processes=1) == 65


def test_what_a_program_leaves_with_is_said_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "mine.py"
    script.write_text("raise SystemExit('for a reason')")
    for name in ("RANK", "WORLD_SIZE"):  # as under a launcher: in this process
        monkeypatch.setenv(name, "0" if name == "RANK" else "1")
    assert runner_main(RunnerConfig(), module_or_script=str(script), config_path="c.yml", processes=1) == 1
    assert capfd.readouterr().err == "for a reason\n"


def test_other_machines_need_a_runner_that_reaches_them(run: Run) -> None:
    config = RunnerConfig.from_dict({"hosts": ["localhost slots=2", "b slots=2"]})
    with pytest.raises(ConfigError, match=r"b is named; set runner\.runner_type to ssh or pdsh, or start torchrun"):
        run("ok", processes=4, config=config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_runner_lets_the_process_save_and_leave(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    process = start("listen:0.3")
    wait_for([tmp_path / "pid_0"])
    process.send_signal(number)
    assert process.wait(60) == 75
    asked = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM
    assert (tmp_path / "asked_0").read_text() == asked.name
    assert (tmp_path / "saved_0").exists()
    assert_gone(tmp_path)


def test_all_processes_save_however_long_one_takes(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("listen:0", "listen:1.0", processes=3)
    wait_for([tmp_path / f"pid_{rank}" for rank in range(3)])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert all((tmp_path / f"saved_{rank}").exists() for rank in range(3))
    assert_gone(tmp_path)


def test_a_second_signal_ends_all_at_once(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("listen:600", "stubborn", processes=2)
    wait_for([tmp_path / f"pid_{rank}" for rank in range(2)])
    process.send_signal(signal.SIGTERM)
    wait_for([tmp_path / "asked_0"])
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert_gone(tmp_path)


def test_a_process_that_does_not_listen_yet_may_be_started_again(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("slow_start")
    wait_for([tmp_path / "pid_0"])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    state = RunState.read(tmp_path / "log")
    assert state is not None
    assert (state.state, state.reason) == (RunPhase.PREEMPTED, "SIGINT before training began")


def test_a_signal_before_there_are_processes_is_passed_on_to_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_meanwhile(name: str) -> ModuleType:
        os.kill(os.getpid(), signal.SIGTERM)
        return import_module(name)

    import_module = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", asked_meanwhile)
    assert run("slow_start", processes=2) == 75


def test_processes_leave_when_their_runner_is_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("listen:0")
    wait_for([tmp_path / "pid_0"])
    process.kill()
    wait_for([tmp_path / "asked_0"])
    assert_gone(tmp_path)


@pytest.mark.parametrize("launched", [False, True])
def test_a_script_finds_what_lies_beside_it_and_what_its_repository_holds(
    launched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "package/__init__.py": "",
        "package/model.py": "SIZE = 3",
        "tools/beside.py": "NAME = 'beside'",
        "tools/train.py": "from beside import NAME\nfrom package.model import SIZE\nprint(NAME, SIZE)",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    if launched:
        for variable, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(variable, value)
    before = list(sys.path)
    config = RunnerConfig.from_dict({"script": "tools/train.py"})
    assert runner_main(config, module_or_script="unused", config_path="config.yml", processes=1) == 0
    assert capfd.readouterr().out == "beside 3\n"
    assert sys.path == before
    for module in ("beside", "package", "package.model"):
        sys.modules.pop(module, None)
