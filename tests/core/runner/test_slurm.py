"""Runs through Slurm, without one: the plan, the real job script in bash, and stand-ins for sbatch and srun."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner import slurm
from scaling.core.runner.config import RunnerConfig, RunnerSlurmConfig, RunnerType
from scaling.core.runner.slurm_script import SlurmPlan, job_script, slurm_plan, start_script, status_of_srun
from tests.processes import is_running, wait_until

PROGRAM = ("-m", "scaling.transformer.train", "config.yml", "trainer.seed=1")
TOOLS = {
    "sbatch": 'printf "%s\\0" "$@" > "$FAKE/sbatch"; env > "$FAKE/env"; [ -z "$FAKE_REFUSAL" ] || '
    '{ echo "sbatch: error: $FAKE_REFUSAL" >&2; exit 1; }; echo "4711${FAKE_CLUSTER}"',
    "scontrol": 'case "$1" in show) printf "%s\\n" $FAKE_HOSTS ;; *) echo "$@" >> "$FAKE/scontrol" ;; esac',
    "squeue": 'echo "${FAKE_STATE-RUNNING}"',
    # Runs the command of the tasks for each of FAKE_ENDS, and ends as srun does: with the greatest status.
    "srun": 'printf "%s\\0" "$@" > "$FAKE/srun"; env > "$FAKE/env"; greatest=0; $FAKE_BEFORE\n'
    'while [ "${1#--}" != "$1" ]; do shift; done\n'
    'for end in $FAKE_ENDS; do FAKE_END=$end "$@"; s=$?; [ $s -le $greatest ] || greatest=$s; done\nexit $greatest',
    "python": 'printf "%s\\0" "$@" > "$FAKE/python"\n'
    'case "$FAKE_END" in -*) kill "$FAKE_END" $$ ;; esac; exit $FAKE_END',
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put what stands in for Slurm's commands and Python on PATH; return where they note what they are given."""
    folder, notes = tmp_path / "tools", tmp_path / "notes"
    folder.mkdir()
    notes.mkdir()
    for name, text in TOOLS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o700)
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "FAKE_", "SCALING_", "MASTER_", "OMP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(notes))
    monkeypatch.setenv("FAKE_HOSTS", "one two three")
    monkeypatch.setenv("FAKE_ENDS", "0")
    monkeypatch.chdir(tmp_path)
    return notes


def config(**values: Any) -> RunnerConfig:
    return RunnerConfig(runner_type=RunnerType.SLURM, **values)


def plan(program: tuple[str, ...] = PROGRAM, processes: int = 4, **values: Any) -> SlurmPlan:
    values = {"default_gpu_count": 2} | values
    return slurm_plan(config(**values), program, processes=processes, log_dir=None, interpreter="python")


def run_script(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "some[1-3]"} | variables
    return subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)


def noted(file: Path) -> list[str]:
    return file.read_text().split("\0")[:-1]


def environment_of(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


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

    def is_killed() -> bool:
        if "QUIT" not in (tools / "got").read_text():
            process.send_signal(signal.SIGTERM)  # those within half a second of the first one do not count
        return process.poll() is not None

    wait_until(is_killed, "the run went on")
    assert process.returncode == 128 + signal.SIGTERM


def test_srun_is_asked_to_leave_when_the_runner_is_killed(start: Callable[[str], Any], tools: Path) -> None:
    process = start("trap 'echo USR1 > $FAKE/got; exit 75' USR1")
    process.kill()
    srun = int((tools / "pid").read_text())
    wait_until(lambda: not is_running(srun), "srun was left behind")
    assert (tools / "got").read_text().strip() == "USR1"
