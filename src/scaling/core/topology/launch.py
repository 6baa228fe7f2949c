"""LaunchContext: the rank and the meeting place that the launcher has put into this process's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling.core.errors import LayoutError

CONFIG_COPY_VARIABLE: Final = "SCALING_CONFIG_COPY"
"""Set by the runner for the processes it starts: the file with the configuration as the runner has read and checked
it."""
RUNNER_VARIABLE: Final = "SCALING_RUNNER_PID"
"""Set by the runner for the processes it starts: its process id. The runner prints the first cause itself, and the
processes end when it is gone."""
ATTEMPT_VARIABLE: Final = "SCALING_ATTEMPT"
"""Set by the runner for the processes it starts: how often it has already restarted the whole run."""
SRUN_VARIABLE: Final = "SCALING_SRUN"
"""Set to the job's number for tasks that this library starts through srun, so that even a single task is a rank."""
_SLURM_MASTER = (
    'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500 before srun'
)


@dataclass(frozen=True, kw_only=True)
class LaunchContext:
    """The rank of this process in the run, and where the processes meet. The default is a process on its own."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number among the processes of this machine; picks the GPU."""
    master_addr: str | None = None
    """Host of rank 0, where the processes meet; None for a process on its own."""
    master_port: int | None = None
    agent_store: bool = False
    """True where torchrun's agent already listens on the master port and rank 0 must not."""
    one_machine: bool = False
    """True where the launcher says that all processes of the run are on this machine."""
    job_id: str | None = None
    """The launcher's name for this job, which distinguishes two jobs of one configuration. None where it has no
    name."""
    restart_count: int = 0
    """How often this machine's agent restarted its processes. Differs between machines, so it identifies nothing."""
    attempt: int = 0
    """How often the runner has already restarted the whole run; the same for all processes."""
    launched: bool = False
    """True where a launcher started this process, whatever the number of processes: there is nothing left to start."""
    config_copy: Path | None = None
    """The file with the configuration as the runner has read it, for `read_config`; None: read the original file."""

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise LayoutError(f"the number of processes is {self.world_size}; it must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise LayoutError(
                f"this process has rank {self.rank}, but in a run of {self.world_size} processes ranks go from 0 to "
                f"{self.world_size - 1}; check RANK and WORLD_SIZE"
            )
        if self.local_rank < 0:
            raise LayoutError(f"the local rank is {self.local_rank}; it counts from 0")
        if self.master_port is not None and not 0 < self.master_port < 2**16:
            raise LayoutError(f"the master port is {self.master_port}; set MASTER_PORT to a port between 1 and 65535")
        if self.world_size > 1 and (self.master_addr is None or self.master_port is None):
            raise LayoutError(
                f"{self.world_size} processes need a place to meet: set MASTER_ADDR to the host of rank 0 and "
                "MASTER_PORT to a free port on it"
            )

    @property
    def meeting_place(self) -> tuple[str, int]:
        """Return the host and port where the processes of the run find each other."""
        if self.master_addr is None or self.master_port is None:
            raise LayoutError("a process on its own has nobody to meet: MASTER_ADDR and MASTER_PORT are not set")
        return self.master_addr, self.master_port

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> LaunchContext:
        """Read the environment (`os.environ` unless given).

        Uses RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun sets them; without RANK and
        WORLD_SIZE, the numbers that srun gives its tasks, with MASTER_ADDR and MASTER_PORT set by the user; with
        neither, a process on its own.
        """
        environ = os.environ if environ is None else environ
        if "RANK" in environ or "WORLD_SIZE" in environ:
            return cls._from_names(environ, rank="RANK", world_size="WORLD_SIZE", local_rank="LOCAL_RANK")
        if _is_srun_task(environ):
            names = {"rank": "SLURM_PROCID", "world_size": "SLURM_NTASKS", "local_rank": "SLURM_LOCALID"}
            return cls._from_names(environ, **names)
        return cls(attempt=_number(environ, ATTEMPT_VARIABLE, default=0), config_copy=_config_copy(environ))

    @classmethod
    def _from_names(cls, environ: Mapping[str, str], *, rank: str, world_size: str, local_rank: str) -> LaunchContext:
        size = _number(environ, world_size)
        several = size > 1
        return cls(
            rank=_number(environ, rank),
            world_size=size,
            local_rank=_number(environ, local_rank) if several or local_rank in environ else 0,
            master_addr=environ.get("MASTER_ADDR") or None,
            master_port=_number(environ, "MASTER_PORT") if several and "MASTER_PORT" in environ else None,
            agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            one_machine=_number(environ, "LOCAL_WORLD_SIZE", default=0) == size,
            job_id=_job_id(environ),
            restart_count=_number(environ, "TORCHELASTIC_RESTART_COUNT", default=0),
            attempt=_number(environ, ATTEMPT_VARIABLE, default=0),
            launched=True,
            config_copy=_config_copy(environ),
        )


def is_started_by_runner() -> bool:
    """Return whether the runner has started this process itself, rather than one of the runner's processes."""
    return os.environ.get(RUNNER_VARIABLE) == str(os.getppid())


def _is_srun_task(environ: Mapping[str, str]) -> bool:
    """Return whether this is a task of srun, not a program that merely runs inside a Slurm allocation.

    The shell of a batch job has SLURM_PROCID and SLURM_NTASKS too, without being one of several processes: only a step
    number, or a meeting place named by the user, shows that this is a task. The runner multiplies a single task, which
    is thus no rank, unless the runner itself has started it through srun. (The variable holds the job's number because
    a task may submit another job, which inherits its environment.)
    """
    if "SLURM_STEP_ID" in environ and environ.get(SRUN_VARIABLE, "") == environ.get("SLURM_JOB_ID"):
        return True
    if "SLURM_PROCID" not in environ or _number(environ, "SLURM_NTASKS", default=1) < 2:
        return False
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        return True
    if "SLURM_STEP_NUM_TASKS" in environ:
        raise LayoutError(f"srun started {environ['SLURM_NTASKS']} tasks without a place to meet; {_SLURM_MASTER}")
    return False


def _config_copy(environ: Mapping[str, str]) -> Path | None:
    return Path(name) if (name := environ.get(CONFIG_COPY_VARIABLE)) else None


def _job_id(environ: Mapping[str, str]) -> str | None:
    if run := environ.get("TORCHELASTIC_RUN_ID"):
        return f"torchrun {run}"
    if job := environ.get("SLURM_JOB_ID"):
        return f"slurm {job}.{environ.get('SLURM_STEP_ID', '0')}"
    return None


def _number(environ: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None:
        if default is not None:
            return default
        raise LayoutError(
            f"{name} is not set although its companions are; a launcher such as torchrun sets RANK, WORLD_SIZE, "
            "LOCAL_RANK, MASTER_ADDR and MASTER_PORT together. Unset them all to train in one process"
        )
    try:
        return int(text)
    except ValueError:
        raise LayoutError(
            f"{name} is {text!r}, which is not a whole number; check the launcher's environment"
        ) from None
