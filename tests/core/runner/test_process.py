"""A training process ends with the right status and leaves word of its failure."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from scaling.core.errors import DataError
from scaling.core.runner.process import run_process
from scaling.core.runner.report import Report
from scaling.core.topology.launch import RUNNER_VARIABLE

WORKER = Path(__file__).with_name("worker_script.py")


def environment_of(rank: int, world_size: int, error_file: Path | None) -> dict[str, str]:
    variables = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    if error_file is not None:
        error_file.parent.mkdir(parents=True)
        variables["TORCHELASTIC_ERROR_FILE"] = str(error_file)
    return variables


def start(tmp_path: Path, behaviour: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    environment = os.environ | dict(variables)
    environment["PYTHONPATH"] = os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(WORKER), str(tmp_path / "config.yml"), behaviour]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def _this_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a process that is done does to itself."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    yield
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in numbers)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_this_process_goes_on")
@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (75, 75)])
def test_the_status_is_that_of_the_outcome(returned: int | None, status: int) -> None:
    with pytest.raises(SystemExit) as leaving:
        run_process(lambda: returned)
    assert leaving.value.code == status


@pytest.mark.usefixtures("_this_process_goes_on")
def test_an_interruption_before_anyone_listens_is_a_preemption() -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as leaving:
        run_process(main)
    assert leaving.value.code == 75


def test_leaving_early_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulthandler, "enable", lambda: None)

    def main() -> None:
        sys.exit("for a reason")

    with pytest.raises(SystemExit, match="for a reason"):
        run_process(main)


def test_a_process_that_nobody_reads_for_says_itself_why_it_failed(tmp_path: Path) -> None:
    process = start(tmp_path, "raise:DataError", environment_of(2, 4, None))
    assert process.communicate(timeout=120)[1] == f"error: rank 2 on {socket.gethostname()}: this is a DataError\n"
    assert process.returncode == DataError.exit_status


def test_under_torchrun_the_first_to_fail_on_a_machine_speaks_and_all_leave_word(tmp_path: Path) -> None:
    files = [tmp_path / "run" / "attempt_0" / str(rank) / "error.json" for rank in range(3)]
    processes = [start(tmp_path, "raise:DataError", environment_of(rank, 3, file)) for rank, file in enumerate(files)]
    shown = [process.communicate(timeout=120)[1] for process in processes]
    assert sorted(map(bool, shown)) == [False, False, True]
    for file in files:
        report = Report.read(file)
        assert report is not None
        assert (report.message, report.status) == ("this is a DataError", 2)


def test_who_speaks_for_all_is_not_stopped_before_it_has_spoken(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from scaling.core import DataError\n"
        "from scaling.core.runner import process\n"
        "is_first = process._is_first\n"
        "def stopped_meanwhile(attempt):\n"
        "    found = is_first(attempt)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"  # torchrun stops all once another one has left silently
        "    return found\n"
        "process._is_first = stopped_meanwhile\n"
        "def main():\n"
        "    raise DataError('this is why')\n"
        "process.run_process(main)\n"
    )
    environment = os.environ | environment_of(0, 2, tmp_path / "run" / "attempt_0" / "0" / "error.json")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (
        DataError.exit_status,
        f"error: rank 0 on {socket.gethostname()}: this is why\n",
    )


def test_a_process_whose_runner_was_killed_before_it_began_leaves(tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", ""])
    assert runner.wait(60) == 0
    with start(tmp_path, "stubborn", {RUNNER_VARIABLE: str(runner.pid)}) as process:
        try:
            assert process.wait(120) == 75
        finally:
            process.kill()


def test_the_log_keeps_what_the_terminal_does_not_show(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from scaling.core import LoggerConfig, configure_logging\n"
        "from scaling.core.runner.process import run_process\n"
        "def main():\n"
        f"    configure_logging(LoggerConfig(log_dir=Path({str(tmp_path)!r})))\n"
        "    raise ValueError('boom')\n"
        "run_process(main)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: boom") == 2
    assert "in main" in (tmp_path / "rank_0.log").read_text()
