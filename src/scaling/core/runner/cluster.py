"""Several machines: who they are, and the torchrun command for each of them."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from scaling.core.errors import ConfigError, Problem, StorageError
from scaling.core.runner.config import RunnerConfig, RunnerType

_DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Machine:
    """One line of the hosts: a name, the number of processes, and the GPUs where they are named."""

    name: str
    processes: int
    gpus: tuple[int, ...] | None = None

    @property
    def is_here(self) -> bool:
        """Return whether this is the machine that the runner runs on."""
        return self.name in ("localhost", "127.0.0.1", "::1", socket.gethostname(), socket.gethostname().split(".")[0])


def machines(config: RunnerConfig) -> list[Machine]:
    """Return the machines that `hosts` or `hostsfile` name; none where neither is given."""
    lines = config.hosts or ()
    if config.hostsfile is not None:
        try:
            text = config.hostsfile.read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"runner.hostsfile {str(config.hostsfile)!r} cannot be read: {error.strerror}"
            ) from error
        lines = [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]
    found = [_machine(line, config.default_gpu_count) for line in lines]
    names = [machine.name for machine in found]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            Problem("runner.hosts", f"names {', '.join(doubles)} more than once; give each machine one line")
        )
    return found


def refuse_other_machines(
    named: Sequence[Machine], config: RunnerConfig, target: Sequence[str], *, processes: int
) -> None:
    """Raise `ConfigError` where other machines than this one, or containers, are asked for; name the commands to use.

    `target` is what torchrun runs on each: `-m`, a module and its arguments, or a script and its arguments.
    """
    in_container = config.runner_type is RunnerType.PDSH_DOCKER
    if all(machine.is_here for machine in named) and not in_container:
        return
    if named:
        commands = torchrun_commands(named, config, target, processes=processes)
        lines = [f"on {machine.name}: {command}" for machine, command in zip(named, commands, strict=True)]
    else:
        lines = [shlex.join(["torchrun", f"--nproc-per-node={processes}", *target])]
    raise ConfigError(
        Problem(
            "runner.runner_type",
            f"is {config.runner_type.value}, but starting processes {'in containers' if in_container else 'elsewhere'} "
            "is not available yet; use torchrun there:\n      " + "\n      ".join(lines),
        )
    )


def torchrun_commands(
    named: Sequence[Machine], config: RunnerConfig, target: Sequence[str], *, processes: int
) -> list[str]:
    """Return the command to run on each machine; `ConfigError` where they offer another number of processes."""
    offered = sum(machine.processes for machine in named)
    if offered != processes:
        raise ConfigError(
            Problem(
                "runner.hosts",
                f"offers {offered} processes ({', '.join(f'{m.name}: {m.processes}' for m in named)}), but "
                f"topology.world_size is {processes}; change the slots or the topology",
            )
        )
    commands = []
    for rank, machine in enumerate(named):
        gpus = "" if machine.gpus is None else f"CUDA_VISIBLE_DEVICES={','.join(map(str, machine.gpus))} "
        options = [
            f"--nnodes={len(named)}",
            f"--node-rank={rank}",
            f"--nproc-per-node={machine.processes}",
            f"--master-addr={config.master_addr or named[0].name}",
            f"--master-port={config.master_port or _DEFAULT_PORT}",
        ]
        commands.append(gpus + shlex.join(["torchrun", *options, *target]))
    return commands


def _machine(line: str, default_processes: int) -> Machine:
    name, _, slots = line.partition("slots=")
    numbers = [number for number in slots.split(",") if number.strip()]
    try:
        if not slots.strip():
            return Machine(name.strip(), default_processes)
        if "," in slots:
            gpus = tuple(int(number) for number in numbers)
            return Machine(name.strip(), len(gpus), gpus)
        return Machine(name.strip(), int(slots))
    except ValueError:
        raise ConfigError(
            Problem("runner.hosts", f"has the line {line!r}; write `name`, `name slots=4` or `name slots=0,2`")
        ) from None
