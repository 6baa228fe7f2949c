"""Run a training through Slurm: submit a job, or start its tasks where there is an allocation already."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, final

from scaling.core.errors import ConfigError, ExitStatus, StorageError
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.slurm_script import (
    JOB_FILE,
    OTHERS_VARIABLES,
    SlurmPlan,
    job_script,
    slurm_plan,
    start_script,
    status_of_srun,
)
from scaling.core.runner.supervisor import POLL_SECONDS, Processes, Supervisor
from scaling.core.storage.writing import storage_errors, write_atomically

_KILL_SECONDS: Final = 5.0
"""How long srun may take to have its tasks killed."""
_PR_SET_PDEATHSIG: Final = 1


def run_job(
    config: RunnerConfig, program: Sequence[str], *, processes: int, log_dir: Path | None, dry_run: bool
) -> int:
    """Run Python with the arguments `program` in `processes` tasks of Slurm; return the exit status.

    Outside an allocation: submit a job and return 0 once Slurm has accepted it, 2 where it has not. Inside one: run the
    tasks, pass signals on, and return their status. With `dry_run` only print what would be submitted or started.
    """
    plan = slurm_plan(config, program, processes=processes, log_dir=log_dir)
    if "SLURM_JOB_ID" in os.environ:
        return _run_tasks(plan, os.environ, dry_run=dry_run)
    if dry_run:
        sys.stdout.write(job_script(plan))
        return ExitStatus.DONE
    return _submit(plan)


def _submit(plan: SlurmPlan) -> int:
    """Write the job script and hand it to sbatch."""
    path = Path(plan.folder, JOB_FILE)
    with storage_errors(f"writing the job script {str(path)!r}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, job_script(plan).encode(), durable=False)
        path.chmod(0o700)
    environment = _without(os.environ, OTHERS_VARIABLES)
    answer = _output_of(["sbatch", "--parsable", str(path)], environment)
    if answer is None:
        sys.stderr.write(f"error: sbatch does not accept {path}; it says why above\n")
        return ExitStatus.USER_INPUT
    job = answer.strip().splitlines()[-1].partition(";")[0]  # after the semicolon is the cluster, if it has a name
    sys.stdout.write(submitted(plan, job))
    return ExitStatus.DONE


def submitted(plan: SlurmPlan, job: str) -> str:
    """Return the message for the user about a job that Slurm has accepted."""
    output = plan.output.replace("%j", job).replace("%%", "%")
    machines = "1 machine" if plan.machines == 1 else f"{plan.machines} machines"
    tasks = "1 task" if plan.tasks_per_machine == 1 else f"{plan.tasks_per_machine} tasks"
    return f"""\
Submitted job {job}: {machines}, {tasks} on each. The script is {os.path.join(plan.folder, JOB_FILE)}
  where it stands          squeue -j {job}
  what it prints           tail -F {shlex.quote(output)}
  save, and queue again    scancel --signal=USR1 {job}
  save, and end for good   scancel {job} (what is not saved within Slurm's KillWait is lost)
"""


def _run_tasks(plan: SlurmPlan, environ: Mapping[str, str], *, dry_run: bool) -> int:
    """Start the tasks on the machines of this allocation, and wait for them."""
    granted = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES") or "1"
    if int(granted) < plan.machines:
        raise ConfigError(
            f"topology.world_size ({plan.processes}) takes {plan.machines} machines of {plan.tasks_per_machine} "
            f"processes, but this allocation (job {environ['SLURM_JOB_ID']}) has {granted}; ask Slurm for more, or "
            "change the topology"
        )
    script = start_script(plan)
    if dry_run:
        sys.stdout.write(script)
        return ExitStatus.DONE
    if shutil.which("srun") is None:
        raise _missing("srun")
    with Supervisor() as supervisor:
        step = _Step(["bash", "-c", script])
        supervisor.crew = step
        while step.process.poll() is None:
            supervisor.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                step.process.wait(POLL_SECONDS)
    return status_of_step(step.process.returncode, asked=supervisor.asked, forced=supervisor.forced)


def status_of_step(code: int, *, asked: signal.Signals | None, forced: bool) -> int:
    """Return the exit status of the run: 75 also for a task that was asked to leave before it could handle signals.

    `code` is srun's status, negative for the signal that ended it; `asked` is the signal that was passed on to it.
    """
    status = status_of_srun(code) if code >= 0 else 128 - code
    if asked is not None and forced and status:
        return 128 + asked
    if asked is not None and status in (128 + signal.SIGTERM, 128 + signal.SIGUSR1):
        return ExitStatus.PREEMPTED
    return status


@final
class _Step:
    """The tasks of one srun, as a crew of one member: srun itself, which passes signals on to all of them."""

    def __init__(self, command: Sequence[str]) -> None:
        # preexec_fn is safe here: this process has no other threads.
        self.process = subprocess.Popen(command, start_new_session=True, preexec_fn=_leave_with_parent)
        self._local = Processes(lambda: {self.process.pid: self.process.returncode})

    def ends(self) -> Mapping[int, int | None]:
        """Return the exit code of srun, None while nobody has waited for it."""
        return self._local.ends()

    def has_ended(self, member: int) -> bool:
        """Return whether srun has ended."""
        return self._local.has_ended(member)

    def ask(self, member: int, number: signal.Signals) -> None:
        """Have srun ask its tasks, by SIGUSR1 whatever `number` is: on SIGTERM it kills them before they can save."""
        self._local.ask(member, signal.SIGUSR1)

    def kill(self, member: int) -> None:
        """Have srun kill its tasks. If srun itself were killed, they would be left running."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.kill(member, signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_KILL_SECONDS)
        self._local.kill(member)


def _leave_with_parent() -> None:
    """Have the kernel send this process SIGUSR1, which srun passes on, when the runner is gone, for example killed."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)


def _output_of(command: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Return the output of a command of Slurm, None where it fails: it says why on this process's standard error."""
    try:
        done = subprocess.run(command, env=dict(environ), stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise _missing(command[0]) from None
    except OSError as error:
        raise StorageError(f"{command[0]} cannot be run: {error}") from error
    return done.stdout if done.returncode == 0 else None


def _missing(name: str) -> ConfigError:
    return ConfigError(
        f"runner.runner_type is slurm, but there is no {name} on this machine's PATH; run the command on a machine of "
        "the cluster, or load Slurm's module there"
    )


def _without(environ: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}
