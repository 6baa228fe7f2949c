"""LaunchPlan: what is started on which machine, in what environment, and where it meets. Computed without a network."""

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

if TYPE_CHECKING:  # a node reads a plan, and needs no configuration for it, whose import takes half a second
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
    """What each machine must have for the run, beside this library."""

    files: tuple[str, ...] = ()
    """Files that must be readable and the same everywhere."""
    folders: tuple[tuple[str, str], ...] = ()
    """Setting and path of folders that must be the same folder everywhere."""
    device: str = "auto"
    """cpu, cuda, or auto: GPUs where there are some."""


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """All that is to be started for one run: the same value for whoever carries it out, and how."""

    run_id: str
    """Names what belongs to this run on every machine: letters, digits and hyphens."""
    hosts: tuple[HostPlan, ...]
    master_addr: str
    """Address at which all machines reach the first one."""
    master_port: int
    """Port at which the processes of the first attempt meet; attempt n meets n ports further."""
    program: tuple[str, ...]
    """What Python is given: `-m`, a module and its arguments, or a script and its arguments."""
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
        """Return the port at which the processes of an attempt, counted from 0, meet: none meets those it replaces."""
        return self.master_port + attempt

    def host_of(self, rank: int) -> HostPlan:
        """Return the machine that a rank runs on."""
        return next(host for host in self.hosts if rank in host.ranks)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LaunchPlan:
        """Return the plan that `as_dict` made these of, be it by way of JSON."""
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

    Ranks go by machine, in the order of the hosts. `ConfigError` where the hosts offer another number of processes than
    `processes`.
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
    """What a machine is told to do for one attempt: the plan, and what is not to be found in it."""

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
