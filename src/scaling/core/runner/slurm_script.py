"""SlurmPlan: the request to Slurm, the tasks that it starts, and the text of the job script. Computed without Slurm."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling.core.errors import ConfigError, Problem
from scaling.core.runner.config import RunnerConfig, RunnerSlurmConfig
from scaling.core.runner.process import ERROR_FILE_VARIABLE
from scaling.core.topology.launch import CONFIG_COPY_VARIABLE, RUNNER_VARIABLE, SRUN_VARIABLE

JOB_FILE: Final = "job.sh"
OTHERS_VARIABLES: Final = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    ERROR_FILE_VARIABLE,
    CONFIG_COPY_VARIABLE,
    RUNNER_VARIABLE,
)
"""Variables that another launcher, or this one on the submitting machine, has set for processes other than the job's.
The copy of the configuration, for example, is gone when the job starts: its tasks read the file."""

_FIRST_PORT: Final = 20000
_PORTS: Final = 12000
"""Ports stay below 32768, from where on Linux chooses the ports of outgoing connections."""
_PORTS_OF_JOB: Final = 11
"""Attempts that a job can make before it reaches the port of the next job's first attempt."""


_TOLD: Final = {1: 101, 70: 102, 74: 103, 2: 252, 65: 253, 138: 254}
"""The status that a task reports to srun, by the status with which it ended. srun returns the greatest status of all
tasks. Once one has failed, srun asks the others to leave, which then save and end with 75: so a failure must report a
greater status than that, an error that would come again a still greater one, and SIGUSR1, which is sent only to ask
tasks to leave, the greatest."""
_TASK: Final = "\n".join(
    (
        "trap : TERM USR1 INT HUP",  # the shell outlives signals that ask the program to leave
        '"$@"',
        "status=$?",
        "case $status in",
        *(f"{status}) exit {told};;" for status, told in _TOLD.items()),
        "143) exit 75;;",  # asked before it could handle signals: there was nothing to save
        "0 | 75 | 129 | 1[3-9]? | 2??) exit $status;; esac",
        f"exit {_TOLD[1]}",
    )
)


@dataclass(frozen=True, kw_only=True)
class SlurmPlan:
    """A run as Slurm starts it: one task of srun for each process, in equal numbers on all machines."""

    machines: int
    tasks_per_machine: int
    program: tuple[str, ...]
    """The arguments of Python: `-m`, a module and its arguments, or a script and its arguments."""
    interpreter: str
    directory: str
    """The working directory, on every machine."""
    folder: str
    """Where the job script and the job's output go."""
    options: RunnerSlurmConfig
    max_restarts: int = 0
    master_addr: str | None = None
    """Address of the first machine; None: its name, as Slurm knows it."""
    master_port: int | None = None
    """None: one derived from the job's number and attempt."""

    @property
    def processes(self) -> int:
        """Return the number of processes on all machines."""
        return self.machines * self.tasks_per_machine

    @property
    def is_script(self) -> bool:
        """Return whether the program is a file, not a module."""
        return self.program[0] != "-m"

    def srun(self) -> list[str]:
        """Return the command that starts the tasks, without the names of the machines.

        Output lines carry no task number: they look as they do on one machine, and each rank has its own log. A task
        that fails ends the others. Without a number of tasks per machine, Slurm would fill the first machine.
        """
        return [
            "srun",
            f"--nodes={self.machines}",
            f"--ntasks={self.processes}",
            f"--ntasks-per-node={self.tasks_per_machine}",
            "--kill-on-bad-exit=1",
            "--export=ALL",
        ]

    def task(self) -> list[str]:
        """Return the command of each task."""
        return ["bash", "-c", _TASK, "task", self.interpreter, "-u", *self.program]

    @property
    def output(self) -> str:
        """Return the pattern of the file for the job's output; `%j` is the job's number."""
        return os.path.join(self.folder.replace("%", "%%"), "slurm-%j.out")


def slurm_plan(
    config: RunnerConfig,
    program: Sequence[str],
    *,
    processes: int,
    log_dir: Path | None,
    directory: str | None = None,
    interpreter: str | None = None,
) -> SlurmPlan:
    """Return how Slurm is to start `processes` processes. Pure, given the working directory and interpreter.

    Raises:
        ConfigError: The processes do not divide among machines, machines are named, or a path cannot be written into a
            job script. Carries all problems.
    """
    directory = directory or os.getcwd()
    folder = os.path.join(directory, log_dir) if log_dir is not None else directory
    setting = "slurm.gpus" if config.slurm.gpus is not None else "default_gpu_count"
    most = config.slurm.gpus or config.default_gpu_count
    tasks = min(processes, most)
    if problems := [*_problems(config, processes, most, setting), *_path_problems(directory, folder)]:
        raise ConfigError(problems)
    return SlurmPlan(
        machines=processes // tasks,
        tasks_per_machine=tasks,
        program=tuple(program),
        interpreter=interpreter or sys.executable,
        directory=directory,
        folder=folder,
        options=config.slurm,
        max_restarts=config.max_restarts,
        master_addr=config.master_addr,
        master_port=config.master_port,
    )


def _problems(config: RunnerConfig, processes: int, most: int, setting: str) -> Iterator[Problem]:
    if processes % min(processes, most):
        yield Problem(
            "topology.world_size",
            f"is {processes}, which does not divide among machines of {most} processes (runner.{setting}); every "
            f"machine of a job gets the same number: make runner.{setting} a divisor of {processes}",
        )
    for name in ("hosts", "hostsfile"):
        if getattr(config, name) is not None:
            yield Problem(
                f"runner.{name}",
                "names machines, but Slurm chooses them; remove it, or ask for them by "
                'runner.slurm.lines: ["--nodelist=NAMES"]',
            )


def _path_problems(directory: str, folder: str) -> Iterator[Problem]:
    for what, path in (("the working directory", directory), ("logger.log_dir", folder)):
        if "\n" in path:
            yield Problem("", f"{what} is {path!r}; sbatch takes no path with a line break")


_TRAP: Final = """\
# This shell outlives what asks its tasks to leave, to see how they end. By handlers: what it starts does not inherit
# those, as it would inherit that a signal is ignored.
trap : TERM USR1 INT HUP"""


def job_script(plan: SlurmPlan) -> str:
    """Return the text of the script for sbatch. It holds no variable's value: Slurm passes the environment on."""
    return "\n".join(["#!/bin/bash", *_options(plan), "", _TRAP, *_start(plan), "", *_end(plan), ""])


def start_script(plan: SlurmPlan) -> str:
    """Return the bash script that starts the tasks in an allocation; its shell is replaced by srun."""
    return "\n".join([*_start(plan, becomes="exec "), ""])


def status_of_srun(code: int) -> int:
    """Return the status with which the tasks ended, from the status of srun."""
    return next((status for status, told in _TOLD.items() if told == code), code)


def _options(plan: SlurmPlan) -> Iterator[str]:
    options = plan.options
    pairs: list[tuple[str, object]] = [
        ("job-name", "scaling"),
        ("nodes", plan.machines),
        ("ntasks-per-node", plan.tasks_per_machine),
        *((name, getattr(options, name)) for name in ("partition", "account", "qos", "time", "constraint")),
        ("gpus-per-node", None if options.gpus is None else plan.tasks_per_machine),
        ("signal", f"USR1@{options.signal_seconds}"),
        ("output", plan.output),
        ("open-mode", "append"),
    ]
    for name, value in pairs:
        if value is not None:
            yield f"#SBATCH --{name}={_escaped(str(value))}"
    yield "#SBATCH --requeue"
    for line in options.lines:  # as they are, and last: of two lines for one option, the later counts
        yield f"#SBATCH {line}"


def _escaped(text: str) -> str:
    """Write a value as sbatch reads its lines: a backslash before any character that sbatch could interpret."""
    return re.sub(r"([^\w./%=:,@+-])", r"\\\1", text)


def _start(plan: SlurmPlan, becomes: str = "") -> Iterator[str]:
    port = f"$(({_FIRST_PORT} + (SLURM_JOB_ID * {_PORTS_OF_JOB} + ${{SLURM_RESTART_COUNT:-0}}) % {_PORTS}))"
    yield f"cd {shlex.quote(plan.directory)} || exit 2"
    yield f"unset {' '.join(OTHERS_VARIABLES)}"
    yield f'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n {plan.machines})'
    address = "${hosts%%$'\\n'*}" if plan.master_addr is None else shlex.quote(plan.master_addr)
    yield f"export MASTER_ADDR={address} MASTER_PORT={plan.master_port or port}"
    yield f"cores=${{SLURM_CPUS_PER_TASK:-$((${{SLURM_CPUS_ON_NODE:-1}} / {plan.tasks_per_machine}))}}"
    yield 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 1 ? cores : 1))}"'
    yield 'export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"'
    segments = '"${PYTORCH_ALLOC_CONF-expandable_segments:True}"'
    yield f'[ -n "$PYTORCH_CUDA_ALLOC_CONF" ] || export PYTORCH_ALLOC_CONF={segments}'
    yield "# srun no longer takes the number of cores over from sbatch."
    yield '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
    if plan.is_script:  # it may import from the working directory of the command, as a module can
        yield f'export PYTHONPATH={shlex.quote(plan.directory)}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    yield f'export {SRUN_VARIABLE}="$SLURM_JOB_ID"'
    yield "# A step of its own, also in the shell of `srun --pty`, which would wait for itself without --overlap."
    yield f"{becomes}{shlex.join(plan.srun())} --nodelist=\"${{hosts//$'\\n'/,}}\" ${{SLURM_STEP_ID:+--overlap}} \\"
    yield f"  {shlex.join(plan.task())}"


def _end(plan: SlurmPlan) -> Iterator[str]:
    told = "\n".join(f"  {code}) status={status} ;;" for status, code in _TOLD.items())
    yield from f"""\
status=$?
case "$status" in
{told}
esac
again=
case "$status" in
  0 | 2 | 65) ;;  # done; an error of your own making; data refused
  75 | 138 | 143) again=1 ;;  # asked to leave: saved, or ended by SIGUSR1 or SIGTERM before there was anything to save
  1 | 70 | 74 | 129 | 1[3-9]? | 2??)  # a failure, a hang, a disk, a signal: runner.max_restarts times
    # Slurm counts every start anew of the job, also those after it was asked to leave or lost a machine.
    [ "${{SLURM_RESTART_COUNT:-0}}" -ge {plan.max_restarts} ] || again=1 ;;
esac
# A job that Slurm itself is ending was cancelled, is out of time, or is queued again already: asked to, Slurm would
# start even the cancelled one anew.
if [ -n "$again" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != COMPLETING ]; then
  echo "slurm: the tasks ended with status $status; job $SLURM_JOB_ID is queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status\"""".splitlines()
