"""Runs through Slurm: submitted, and started in an allocation, with stand-ins for Slurm's commands."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import slurm
from tests.core.runner.slurm_tools import PROGRAM, config, environment_of, noted
from tests.processes import is_running, wait_until


def run_job(log_dir: Path | None, *, dry_run: bool = False, **values: Any) -> int:
    values = {"default_gpu_count": 2} | values
    return slurm.run_job(config(**values), PROGRAM, processes=4, log_dir=log_dir, dry_run=dry_run)


def test_a_submitted_job_says_its_number_and_how_to_follow_it(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable, value in {"A_TOKEN": "hush", "SCALING_CONFIG_COPY": "/gone", "RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    for cluster, log_dir in (("", Path("50% log")), (";alps", None)):
        monkeypatch.setenv("FAKE_CLUSTER", cluster)
        assert run_job(log_dir) == 0
        folder = tmp_path / (log_dir or "")
        script = folder / "job.sh"
        assert noted(tools / "sbatch") == ["--parsable", str(script)]
        assert script.stat().st_mode & 0o777 == 0o700
        assert "hush" not in script.read_text()
        assert capfd.readouterr().out == (
            f"Submitted job 4711: 2 machines, 2 tasks on each. The script is {script}\n"
            "  where it stands          squeue -j 4711\n"
            f"  what it prints           tail -F {shlex.quote(str(folder / 'slurm-4711.out'))}\n"
            "  save, and queue again    scancel --signal=USR1 4711\n"
            "  save, and end for good   scancel 4711 (what is not saved within Slurm's KillWait is lost)\n"
        )
        given = environment_of(tools / "env")
        assert given["A_TOKEN"] == "hush"
        assert not {"SCALING_CONFIG_COPY", "RANK"} & set(given)


def test_what_sbatch_refuses_is_the_users_to_put_right_in_its_own_words(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_REFUSAL", "invalid partition specified: nowhere")
    assert run_job(None) == 2
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith("sbatch: error: invalid partition specified: nowhere\nerror: sbatch does not accept ")


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_job(Path("log"), dry_run=True) == 0
    assert capfd.readouterr().out.startswith("#!/bin/bash\n#SBATCH ")
    allocate(monkeypatch)
    assert run_job(Path("log"), dry_run=True) == 0
    assert "\nexec srun --nodes=2 " in capfd.readouterr().out
    assert not [*tools.iterdir()]
    assert {path.name for path in tmp_path.iterdir()} == {"tools", "notes"}


def allocate(monkeypatch: pytest.MonkeyPatch, machines: int = 2) -> None:
    for name, value in {"JOB_ID": "77", "JOB_NUM_NODES": str(machines), "JOB_NODELIST": "some[1-3]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.parametrize("inside", [False, True])
def test_a_machine_without_slurm_is_named_as_such(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    shutil.rmtree(tmp_path / "tools")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "bash").symlink_to(bash)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    if inside:
        allocate(monkeypatch)
    with pytest.raises(ConfigError, match=f"there is no {'srun' if inside else 'sbatch'} on this machine's PATH"):
        run_job(None)


def test_an_allocation_that_is_too_small_is_refused_with_the_numbers(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate(monkeypatch, machines=1)
    with pytest.raises(ConfigError, match=r"world_size \(4\) takes 2 machines of 2 .*job 77\) has 1"):
        run_job(None)
    assert not (tools / "srun").exists()


@pytest.mark.parametrize(("ends", "status"), [("0 0", 0), ("1 75", 1), ("2 -TERM", 2), ("75 75", 75), ("-KILL 1", 137)])
def test_inside_an_allocation_the_run_ends_as_its_tasks_do(
    tools: Path, monkeypatch: pytest.MonkeyPatch, ends: str, status: int
) -> None:
    allocate(monkeypatch)
    monkeypatch.setenv("FAKE_ENDS", ends)
    monkeypatch.setattr(sys, "executable", "python")
    assert run_job(None) == status
    assert noted(tools / "python") == ["-u", *PROGRAM]
    assert "--nodelist=one,two" in noted(tools / "srun")


@pytest.fixture
def start(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Start a run in an allocation, whose srun answers signals by these commands of bash."""
    allocate(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm.__file__).parents[3]))
    started: list[subprocess.Popen[bytes]] = []

    def start_it(answers: str) -> subprocess.Popen[bytes]:
        text = f"#!/bin/bash\n{answers}\necho $$ > $FAKE/pid; while :; do sleep 0.05; done\n"
        (tmp_path / "tools" / "srun").write_text(text)
        code = f"""\
import sys
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.slurm import run_job
sys.exit(run_job(RunnerConfig(runner_type="slurm"), {PROGRAM!r}, processes=2, log_dir=None, dry_run=False))
"""
        started.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL))
        wait_until(lambda: (tools / "pid").exists() and (tools / "pid").read_text() != "", "srun was not started")
        assert started[-1].poll() is None
        return started[-1]

    yield start_it
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_whatever_asks_the_run_to_leave_is_sigusr1_to_srun_which_kills_at_others(
    start: Callable[[str], Any], tools: Path, sent: signal.Signals
) -> None:
    process = start(
        "trap 'echo USR1 > $FAKE/got; exit 75' USR1; trap 'echo another > $FAKE/got; exit 137' TERM INT HUP"
    )
    process.send_signal(sent)
    assert process.wait(60) == 75
    assert (tools / "got").read_text() == "USR1\n"


def test_tasks_that_die_of_being_asked_had_nothing_to_save(start: Callable[[str], Any]) -> None:
    process = start("")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75


def test_a_second_request_has_srun_kill_its_tasks(start: Callable[[str], Any], tools: Path) -> None:
    process = start("trap 'echo told > $FAKE/got' USR1; trap 'echo QUIT > $FAKE/got; exit 137' QUIT")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: (tools / "got").exists(), "srun was not told")

    time.sleep(0.6)  # within half a second of the first one another does not count; a third would end the runner itself
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: process.poll() is not None, "the run went on")
    assert (tools / "got").read_text() == "QUIT\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_srun_is_asked_to_leave_when_the_runner_is_killed(start: Callable[[str], Any], tools: Path) -> None:
    process = start("trap 'echo USR1 > $FAKE/got; exit 75' USR1")
    process.kill()
    srun = int((tools / "pid").read_text())
    wait_until(lambda: not is_running(srun), "srun was left behind")
    assert (tools / "got").read_text().strip() == "USR1"
