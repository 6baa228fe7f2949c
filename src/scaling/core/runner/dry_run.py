"""The output of `--dry-run`: the plan of a run in words and the commands that would be started. Changes nothing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from scaling.core.runner.environment import is_secret
from scaling.core.runner.order_file import order_path
from scaling.core.runner.plan import LaunchPlan
from scaling.core.runner.transports.client import Transport, Verb


def describe_local(program: Sequence[str], *, processes: int, gpus: Sequence[int] | None) -> str:
    """Return what would be started on this machine."""
    some = "1 process" if processes == 1 else f"{processes} processes"
    lines = [f"{some} on this machine:", f"  {shlex.join([sys.executable, '-u', *program])}"]
    if gpus is not None:
        lines.append(f"  GPUs {', '.join(map(str, gpus))}")
    return "\n".join(lines)


def describe_plan(plan: LaunchPlan, transport: Transport) -> str:
    """Return what would be started on all machines of a plan, and by which clients."""
    return "\n".join(_lines(plan, transport))


def _lines(plan: LaunchPlan, transport: Transport) -> Iterator[str]:
    machines = "1 host" if len(plan.hosts) == 1 else f"{len(plan.hosts)} hosts"
    yield f"run {plan.run_id}: {plan.world_size} processes on {machines}"
    yield f"  meeting place: {plan.master_addr}:{plan.port(0)}"
    yield f"  program: {shlex.join([plan.interpreter, '-u', *plan.program])}"
    yield f"  working directory: {plan.directory}"
    yield from _variables(plan.environment, indent="  ")
    if plan.secrets:
        yield f"  secrets, by name alone: {', '.join(plan.secrets)}"
    for host in plan.hosts:
        ranks = f"rank {host.first_rank}" if host.processes == 1 else f"ranks {host.ranks[0]} to {host.ranks[-1]}"
        gpus = "" if host.gpus is None else f", GPUs {', '.join(map(str, host.gpus))}"
        yield f"host {host.name}: {ranks}{gpus}"
        yield from _variables(host.environment, indent="  ")
    path = order_path(plan, 0) if transport.needs_file else None
    if path is not None:
        yield f"order file: {path}"
    clients = transport.clients(plan, Verb.RUN, order_file=path)
    yield "client:" if len(clients) == 1 else "clients:"
    for client in clients:
        settings = [f"{name}={shlex.quote(value)}" for name, value in client.environment.items() if not is_secret(name)]
        yield f"  {' '.join([*settings, shlex.join(client.argv)])}"


def _variables(values: Mapping[str, str], *, indent: str) -> Iterator[str]:
    for name, value in values.items():
        if not is_secret(name):
            yield f"{indent}{name}={shlex.quote(value)}"
