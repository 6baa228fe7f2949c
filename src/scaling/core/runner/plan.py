"""LaunchPlan: what is started on which machine, its environment and meeting place. Computed without a network."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scaling.core.errors import ConfigError, Problem
from scaling.core.runner.environment import forwarded
from scaling.core.runner.hosts import Host

if TYPE_CHECKING:  # a node reads a plan without the configuration, whose import takes half a second
    from scaling.core.runner.config import RunnerConfig

DEFAULT_PORT: Final = 29500


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """What runs on one machine."""

    name: str
    index: int
    """Its number among the machines, in the order in which they were named."""
    first_rank: int
    processes: int
    gpus: tuple[int, ...] | None = None
    """GPUs by number, where the user has named them."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables for this machine alone."""

    @property
    def ranks(self) -> range:
        """Return the ranks of its processes."""
        return range(self.first_rank, self.first_rank + self.processes)


@dataclass(frozen=True, kw_only=True)
class HostNeeds:
    """What each machine must have for the run, besides this library."""

    files: tuple[str, ...] = ()
    """Files that must be readable and the same everywhere."""
    folders: tuple[tuple[str, str], ...] = ()
    """Setting and path of folders that must be the same folder everywhere."""
    device: str = "auto"
    """cpu, cuda, or auto: GPUs where there are some."""


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """All that is to be started for one run, whichever transport carries it out."""

    run_id: str
    """Identifies everything that belongs to this run on every machine: letters, digits and hyphens."""
    hosts: tuple[HostPlan, ...]
    master_addr: str
    """Address at which all machines reach the first one."""
    master_port: int
    """Port at which the processes of the first attempt meet; attempt n, counted from 0, uses the port n higher."""
    program: tuple[str, ...]
    """The arguments of Python: `-m`, a module and its arguments, or a script and its arguments."""
    interpreter: str
    directory: str
    """The working directory, on every machine."""
    config_path: str
    """The configuration, among the arguments of the program."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables for all machines. Nothing secret."""
    secrets: tuple[str, ...] = ()
    """Names of variables that are to be passed on but never written anywhere."""
    needs: HostNeeds = HostNeeds()

    @property
    def world_size(self) -> int:
        """Return the number of processes on all machines."""
        return sum(host.processes for host in self.hosts)

    def port(self, attempt: int) -> int:
        """Return the port at which the processes of an attempt, counted from 0, meet: a different one for each."""
        return self.master_port + attempt

    def host_of(self, rank: int) -> HostPlan:
        """Return the machine that a rank runs on."""
        return next(host for host in self.hosts if rank in host.ranks)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LaunchPlan:
        """Return the plan from the values of `as_dict`, which may have passed through JSON."""
        hosts = tuple(
            HostPlan(**{**host, "gpus": None if host["gpus"] is None else tuple(host["gpus"])})
            for host in values["hosts"]
        )
        needs = HostNeeds(
            files=tuple(values["needs"]["files"]),
            folders=tuple((setting, path) for setting, path in values["needs"]["folders"]),
            device=values["needs"]["device"],
        )
        lists = {name: tuple(values[name]) for name in ("program", "secrets")}
        return cls(**{**values, **lists, "hosts": hosts, "needs": needs})


def launch_plan(
    config: RunnerConfig,
    hosts: Sequence[Host],
    program: Sequence[str],
    *,
    run_id: str,
    processes: int,
    config_path: Path | str,
    needs: HostNeeds,
    environ: Mapping[str, str] | None = None,
    directory: str | None = None,
    interpreter: str | None = None,
) -> LaunchPlan:
    """Return what is to be started on `hosts`. Pure, given the environment, working directory and interpreter.

    Ranks are numbered by machine, in the order of the hosts. Raises `ConfigError` where the hosts do not offer exactly
    `processes` processes.
    """
    offered = sum(host.slots for host in hosts)
    if offered != processes:
        raise ConfigError(
            Problem(
                "runner.hosts",
                f"offers {offered} processes ({', '.join(f'{host.name}: {host.slots}' for host in hosts)}), but "
                f"topology.world_size is {processes}; change the slots or the topology",
            )
        )
    first, planned = 0, []
    for index, host in enumerate(hosts):
        planned.append(HostPlan(name=host.name, index=index, first_rank=first, processes=host.slots, gpus=host.gpus))
        first += host.slots
    variables = forwarded(os.environ if environ is None else environ, config.forward_environment)
    return LaunchPlan(
        run_id=run_id,
        hosts=tuple(planned),
        master_addr=config.master_addr or hosts[0].name.rpartition("@")[2],
        master_port=config.master_port or DEFAULT_PORT,
        program=tuple(program),
        interpreter=interpreter or sys.executable,
        directory=directory or os.getcwd(),
        config_path=str(config_path),
        environment=variables.plain,
        secrets=tuple(variables.secrets),
        needs=needs,
    )


@dataclass(frozen=True, kw_only=True)
class Order:
    """The instructions to a machine for one attempt: the plan, and what the plan does not contain."""

    plan: LaunchPlan
    attempt: int = 0
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Values of the plan's secrets. Empty wherever the order is written to a file."""
    config_text: str | None = None
    """The configuration as the runner has read and checked it; None: it is read from its file on each machine."""

    def to_json(self) -> str:
        """Return the order as one line."""
        return json.dumps(
            {
                "plan": self.plan.as_dict(),
                "attempt": self.attempt,
                "secrets": dict(self.secrets),
                "config_text": self.config_text,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Return the order in a line."""
        values = json.loads(text)
        return cls(**{**values, "plan": LaunchPlan.from_dict(values["plan"])})
