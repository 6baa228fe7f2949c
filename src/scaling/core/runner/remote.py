"""RemoteJob: a training on several machines, started over a transport, and restarted as a whole after a failure."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.environment import forwarded
from scaling.core.runner.fleet import FLEET_GRACE_SECONDS, Fleet, clear
from scaling.core.runner.looking import look_everywhere
from scaling.core.runner.order_file import order_file
from scaling.core.runner.outcome import Outcome
from scaling.core.runner.plan import HostPlan, LaunchPlan, Order
from scaling.core.runner.supervisor import Supervisor
from scaling.core.runner.transports import require_programs
from scaling.core.runner.transports.client import Transport
from scaling.core.runner.transports.failures import explain
from scaling.core.topology.launch import ATTEMPT_VARIABLE


@final
class RemoteJob:
    """A training on the machines of a plan.

    `config_text` is the configuration as it was read; it is sent to machines that get standard input; otherwise each
    machine reads the file.
    """

    def __init__(
        self, plan: LaunchPlan, transport: Transport, config: RunnerConfig, *, config_text: str | None
    ) -> None:
        self._plan = plan
        self._transport = transport
        self._config = config
        self._config_text = None if transport.needs_file else config_text
        self._offsets: Mapping[int, float] = {}
        self._own: Mapping[int, Mapping[str, str]] = {}  # variables of single machines, from the check of the machines

    @property
    def processes(self) -> int:
        """Return the number of processes on all machines."""
        return self._plan.world_size

    def supervisor(self) -> Supervisor:
        """Return the supervisor of an attempt."""
        return Supervisor(grace=FLEET_GRACE_SECONDS)

    def prepare(self, attempt: int) -> None:
        """Kill leftovers of the previous attempt, and check all machines; raise `ConfigError` with all problems."""
        require_programs(self._config, alone=all(host.name == "localhost" for host in self._plan.hosts))
        if attempt:
            clear(self._plan, self._transport)
        plan = dataclasses.replace(self._plan, master_port=self._plan.port(attempt))
        findings = look_everywhere(plan, self._transport, config_text=self._config_text)
        if (error := findings.error()) is not None:
            raise error
        for note in findings.notes if not attempt else ():
            sys.stderr.write(f"note: {note}\n")
        self._own, self._offsets = findings.environment, findings.offsets

    def run(self, attempt: int, supervisor: Supervisor) -> Outcome:
        """Run all machines of an attempt to their end; return how they ended."""
        order = Order(
            plan=plan_of_attempt(self._plan, attempt, self._own),
            attempt=attempt,
            secrets=forwarded(os.environ, self._config.forward_environment).secrets,
            config_text=self._config_text,
        )
        with contextlib.ExitStack() as kept:
            path: Path | None = None
            if self._transport.needs_file:
                path = kept.enter_context(order_file(order))
            fleet = Fleet(order, self._transport, explain=self._explain, order_file=path, offsets=self._offsets)
            return fleet.run(supervisor)

    def _explain(self, lines: Sequence[str], status: int, host: HostPlan) -> str:
        return explain(lines, status, host=host, transport=self._transport)


def plan_of_attempt(plan: LaunchPlan, attempt: int, own: Mapping[int, Mapping[str, str]]) -> LaunchPlan:
    """Return the plan with the number of the attempt, and with variables that single machines need."""
    hosts = tuple(
        dataclasses.replace(host, environment={**host.environment, **own.get(host.index, {})}) for host in plan.hosts
    )
    return dataclasses.replace(plan, hosts=hosts, environment={**plan.environment, ATTEMPT_VARIABLE: str(attempt)})
