"""Run a command over several processes: the options for their number, and the start of all of them from one."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from scaling.cli.leaving import ending_with_reader
from scaling.core import ConfigError, LaunchContext, Topology, TopologyConfig, run_process, run_program
from scaling.core.topology.launch import is_started_by_runner
from scaling.transformer.inference.device import require_device

COMMAND = "scaling.cli.main"
"""The module of the command, which is started again with the same arguments."""

_KINDS = ("cpu", "cuda")

ModelParallelSize = Annotated[
    int,
    typer.Option(
        "--model-parallel-size", min=1, metavar="N", help="Tensor-parallel processes, which share every layer."
    ),
]
PipeParallelSize = Annotated[
    int,
    typer.Option(
        "--pipe-parallel-size",
        min=1,
        metavar="N",
        help="Pipeline-parallel processes, among which the layers are divided.",
    ),
]
DataParallelSize = Annotated[
    int,
    typer.Option(
        "--data-parallel-size",
        min=1,
        metavar="N",
        help="Data-parallel copies of the model, each for a part of the work.",
    ),
]
DeviceName = Annotated[
    str,
    # The name is given explicitly: one version of typer mistakes a metavar that is the name in capitals for it.
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda for a GPU (one for each process), or cuda:N for GPU number N.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Here:
    """The place of a process in a command: its device, and the other processes."""

    device: str
    topology: Topology | None = None
    """All processes of the command; None for a single process."""

    @property
    def speaks(self) -> bool:
        """Return whether this process writes to standard output: a single process, or rank 0."""
        return self.topology is None or self.topology.rank == 0

    @property
    def notes(self) -> bool:
        """Return whether this process prints notes: not if it was started by a process that has printed them."""
        return self.speaks and not is_started_by_runner()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The number of processes that a command runs over, and their device."""

    device: str = "cpu"
    model_parallel_size: int = 1
    pipe_parallel_size: int = 1
    data_parallel_size: int = 1

    @property
    def processes(self) -> int:
        """Return the number of processes."""
        return self.model_parallel_size * self.pipe_parallel_size * self.data_parallel_size

    @property
    def are_to_be_started(self) -> bool:
        """Return whether `run` starts the command again in several processes, instead of working in this one."""
        return self.processes > 1 and not LaunchContext.from_environment().launched

    def run(
        self, work: Callable[[Here], None], *, variables: Mapping[str, str] | None = None, command: str = COMMAND
    ) -> None:
        """Do the work of the command here, or start the same command again in as many processes as asked for.

        Each of these calls this function again, joins the others and works. `variables` are added to their environment.
        Inside torchrun or srun this process is one of them. A failure is reported once, whichever process notices it.
        Ends the process where it is one of several, or where a process that it started has failed.
        """
        launch = LaunchContext.from_environment()
        if launch.launched:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to save, so computation can be cut off
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            run_process(lambda: self._work_as_rank(work, launch))
        if self.processes == 1:
            with ending_with_reader():
                work(Here(device=self.device))
            return
        self._topology()  # reports impossible options before anything starts
        status = run_program(command, sys.argv[1:], processes=self.processes, variables=variables)
        if status:
            raise typer.Exit(status)

    def require_started(self, processes: int) -> None:
        """Refuse a number of `processes`, started by a launcher, that is not the number the options ask for."""
        if processes == self.processes:
            return
        sizes = f"--model-parallel-size {self.model_parallel_size} * --pipe-parallel-size {self.pipe_parallel_size}"
        if self.data_parallel_size > 1:  # not every command has it
            sizes += f" * --data-parallel-size {self.data_parallel_size}"
        raise ConfigError(
            f"the launcher started {processes} {'process' if processes == 1 else 'processes'}, but {sizes} = "
            f"{self.processes}; start {self.processes}, or give sizes that make {processes}"
        )

    def _work_as_rank(self, work: Callable[[Here], None], launch: LaunchContext) -> None:
        self.require_started(launch.world_size)
        digest = hashlib.sha256(json.dumps(sys.argv[1:]).encode()).hexdigest()
        with Topology.connect(self._topology(), launch, digest=digest) as topology:
            here = Here(device=str(topology.device), topology=topology)
            if here.speaks:
                with ending_with_reader():
                    work(here)
            else:
                work(here)

    def _topology(self) -> TopologyConfig:
        if self.device not in _KINDS:
            require_device(self.device)
            raise ConfigError(
                f"--device ({self.device}) is one device, but there are {self.processes} processes, each with one of "
                "its own; give cpu or cuda, and name the GPUs to use in CUDA_VISIBLE_DEVICES"
            )
        return TopologyConfig.from_dict(
            {
                "model_parallel_size": self.model_parallel_size,
                "pipe_parallel_size": self.pipe_parallel_size,
                "data_parallel_size": self.data_parallel_size,
                "device": self.device,
            },
            quiet=True,
        )
