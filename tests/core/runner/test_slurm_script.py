"""The plan of a run through Slurm, and what the real job script does in bash with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner.config import RunnerSlurmConfig
from scaling.core.runner.slurm_script import SlurmPlan, job_script, slurm_plan, start_script, status_of_srun
from tests.core.runner.slurm_tools import PROGRAM, config, environment_of, noted


def plan(program: tuple[str, ...] = PROGRAM, processes: int = 4, **values: Any) -> SlurmPlan:
    values = {"default_gpu_count": 2} | values
    return slurm_plan(config(**values), program, processes=processes, log_dir=None, interpreter="python")


def run_script(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "some[1-3]"} | variables
    return subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processes", range(1, 33))
@pytest.mark.parametrize("most", [1, 3, 4, 8])
def test_machines_get_equal_numbers_or_the_run_is_refused(processes: int, most: int) -> None:
    for given in ({"default_gpu_count": most}, {"slurm": RunnerSlurmConfig(gpus=most)}):
        if processes > most and processes % most:
            name = next(iter(given)) if "slurm" not in given else "slurm.gpus"
            with pytest.raises(ConfigError, match=rf"topology.world_size: is {processes}, .* runner.{name}"):
                plan(processes=processes, **given)
        else:
            made = plan(processes=processes, **given)
            assert made.processes == processes
            assert made.tasks_per_machine <= most


def test_all_that_slurm_cannot_do_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(processes=9, hosts=["a", "b"], default_gpu_count=8)
    assert [problem.path for problem in caught.value.problems] == ["topology.world_size", "runner.hosts"]
    assert "--nodelist" in str(caught.value)
    with pytest.raises(ConfigError, match="line break"):
        slurm_plan(config(), PROGRAM, processes=1, log_dir=tmp_path / "a\nb")


def options_of(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_the_job_asks_for_what_the_configuration_says() -> None:
    options = RunnerSlurmConfig(
        partition="gpu", account="us", qos="high", time="1-12", constraint="a&b", gpus=2, lines=["--exclusive"]
    )
    made = slurm_plan(
        config(slurm=options), PROGRAM, processes=6, log_dir=Path("my 100% log"), directory="/a", interpreter="python"
    )
    assert options_of(job_script(made)) == [
        "--job-name=scaling",
        "--nodes=3",
        "--ntasks-per-node=2",
        "--partition=gpu",
        "--account=us",
        "--qos=high",
        "--time=1-12",
        r"--constraint=a\&b",
        "--gpus-per-node=2",
        "--signal=USR1@120",
        r"--output=/a/my\ 100%%\ log/slurm-%j.out",
        "--open-mode=append",
        "--requeue",
        "--exclusive",
    ]
    asked_for = {line.partition("=")[0] for line in options_of(job_script(plan()))}
    assert not asked_for & {"--partition", "--account", "--qos", "--time", "--constraint", "--gpus-per-node"}


def test_any_argument_reaches_python_as_it_was_given(tools: Path, tmp_path: Path) -> None:
    letters = "ab \t'\"\\$`;&|<>(){}[]*?!#~%=:,-é\n"
    chance = random.Random(0)
    for _ in range(10):
        arguments = tuple("".join(chance.choices(letters, k=chance.randrange(12))) for _ in range(4))
        for text in (job_script(plan(("-m", "module", *arguments))), start_script(plan(("-m", "module", *arguments)))):
            done = run_script(text)
            assert (done.returncode, done.stderr) == (0, "")
            assert noted(tools / "python") == ["-u", "-m", "module", *arguments]


def test_tasks_are_spread_evenly_over_the_first_machines(tools: Path) -> None:
    run_script(job_script(plan()))
    assert noted(tools / "srun")[:6] == [
        "--nodes=2",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "--nodelist=one,two",
    ]
    assert noted(tools / "srun")[6] == "bash"
    run_script(start_script(plan()), SLURM_STEP_ID="0")
    assert noted(tools / "srun")[6] == "--overlap"


def test_tasks_find_where_to_meet_and_nothing_of_another_launcher(tools: Path) -> None:
    other = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "elsewhere", "SCALING_CONFIG_COPY": "/gone", "MINE": "kept"}
    ports = set()
    for job in (1, 2, 999_999_999):
        for restarts in ("", "1", "2"):
            variables = {"SLURM_JOB_ID": str(job)} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
            run_script(job_script(plan()), **other, **variables)
            found = environment_of(tools / "env")
            assert found["MASTER_ADDR"] == "one"
            assert found["MINE"] == "kept"
            assert not {"RANK", "WORLD_SIZE", "SCALING_CONFIG_COPY"} & set(found)
            assert found["SCALING_SRUN"] == str(job)
            ports.add(int(found["MASTER_PORT"]))
    assert len(ports) == 9
    assert min(ports) >= 20000
    assert max(ports) < 32768
    run_script(job_script(plan(master_addr="10.0.0.1", master_port=1234)))
    found = environment_of(tools / "env")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "1234")


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, "1"),
        ({"SLURM_CPUS_ON_NODE": "16"}, "8"),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_CPUS_PER_TASK": "3"}, "3"),
        ({"SLURM_CPUS_ON_NODE": "16", "OMP_NUM_THREADS": "5"}, "5"),
    ],
)
def test_tasks_use_the_cores_that_slurm_gives_them(tools: Path, given: dict[str, str], threads: str) -> None:
    run_script(job_script(plan()), **given)
    found = environment_of(tools / "env")
    assert found["OMP_NUM_THREADS"] == threads
    assert found.get("SRUN_CPUS_PER_TASK") == given.get("SLURM_CPUS_PER_TASK")


def test_a_script_may_import_from_the_folder_of_the_command(tools: Path) -> None:
    for former, expected in (("", str(Path.cwd())), ("/x", f"{Path.cwd()}:/x")):
        run_script(job_script(plan(("train.py", "config.yml"))), PYTHONPATH=former)
        assert environment_of(tools / "env")["PYTHONPATH"] == expected


ALWAYS, BOUNDED, NEVER = "always", "up to max_restarts", "never"


@pytest.mark.parametrize(
    ("ends", "status", "again"),
    [
        ("0 0", 0, NEVER),
        ("2 2", 2, NEVER),
        ("65 0", 65, NEVER),
        ("75 75", 75, ALWAYS),
        ("0 75", 75, ALWAYS),
        ("-USR1 -USR1", 138, ALWAYS),
        ("-TERM -TERM", 75, ALWAYS),
        ("1 0", 1, BOUNDED),
        ("70 70", 70, BOUNDED),
        ("74 0", 74, BOUNDED),
        ("3 75", 1, BOUNDED),
        ("-KILL 75", 137, BOUNDED),
        ("-SEGV 1", 139, BOUNDED),
        # One failed, and the others left because srun asked them to: it is a failure.
        ("1 75", 1, BOUNDED),
        ("74 -TERM", 74, BOUNDED),
        ("2 -TERM", 2, NEVER),
        ("65 75", 65, NEVER),
        # An error that comes again, whatever it did to the others.
        ("2 1", 2, NEVER),
        ("2 -KILL", 2, NEVER),
        # One was asked before it could listen, and left the others without a partner.
        ("-USR1 1", 138, ALWAYS),
        ("-USR1 75", 138, ALWAYS),
    ],
)
def test_a_job_is_queued_again_by_how_its_tasks_ended(tools: Path, ends: str, status: int, again: str) -> None:
    for order in (ends, " ".join(reversed(ends.split()))):
        for restarts in (0, 1, 2, 3):
            count = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
            done = run_script(job_script(plan(max_restarts=2)), FAKE_ENDS=order, **count)
            assert done.returncode == status
            expected = again is ALWAYS or (again is BOUNDED and restarts < 2)
            assert requeued(tools) is expected
            assert ("is queued again" in done.stderr) is expected


@pytest.mark.parametrize("status", range(0, 256, 5))
def test_statuses_of_srun_itself_are_understood(tools: Path, tmp_path: Path, status: int) -> None:
    (tmp_path / "tools" / "srun").write_text(f"#!/bin/bash\nexit {status}\n")
    done = run_script(job_script(plan()))
    assert done.returncode == status_of_srun(status)
    assert requeued(tools) is (done.returncode in (75, 138, 143))


def test_a_job_that_slurm_is_ending_is_not_queued_again(tools: Path) -> None:
    done = run_script(job_script(plan(max_restarts=1)), FAKE_ENDS="75", FAKE_STATE="COMPLETING")
    assert (done.returncode, requeued(tools)) == (75, False)
    run_script(job_script(plan()), FAKE_ENDS="75", FAKE_STATE="SIGNALING")
    assert requeued(tools)


def test_the_script_outlives_what_asks_its_tasks_to_leave_and_hides_no_signal_from_them(
    tools: Path, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    before.write_text(
        "#!/bin/bash\ngrep SigIgn /proc/self/status > $FAKE/ignored\n"
        "shell=$(ps -o ppid= $PPID); for name in USR1 TERM INT HUP; do kill -$name $shell; done\n"
    )
    before.chmod(0o700)
    done = run_script(job_script(plan()), FAKE_ENDS="75", FAKE_BEFORE=str(before))
    assert (done.returncode, requeued(tools)) == (75, True)
    ignored = int((tools / "ignored").read_text().split()[1], 16)
    asking = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
    assert not any(ignored >> (number - 1) & 1 for number in asking)


def requeued(tools: Path) -> bool:
    """Return whether the job was queued again since this was last asked."""
    file = tools / "scontrol"
    asked = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    assert asked in ([], ["requeue 77"])
    return bool(asked)
