"""Problems with the machines of a run, found from the facts that each of them has reported. Pure."""

from __future__ import annotations

import errno
import ipaddress
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from scaling.core.errors import ConfigError
from scaling.core.runner.look import HostFacts
from scaling.core.runner.plan import LaunchPlan

CLOCK_SECONDS: Final = 2.0
"""How much clocks may differ: they decide what happened first, and on which machine."""
_WIDTH: Final = 118
_INTERFACE_VARIABLE: Final = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class HostProblem:
    """One thing that is wrong on one machine."""

    host: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The findings about all machines of a run."""

    problems: tuple[HostProblem, ...] = ()
    notes: tuple[str, ...] = ()
    """Problems that are worked around for this run, and that the user should fix for good."""
    environment: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """Variables for single machines, by number."""
    offsets: Mapping[int, float] = field(default_factory=dict)
    """Seconds by which the clock of a machine is at least ahead of the runner's (negative: behind it), by number."""

    def table(self) -> str:
        """Return all problems, each on lines of its own; a problem that several machines share appears once."""
        hosts: dict[str, list[str]] = {}
        for problem in self.problems:
            hosts.setdefault(problem.message, []).append(problem.host)
        names = {message: ", ".join(dict.fromkeys(shared)) for message, shared in hosts.items()}
        width = min(24, max(map(len, names.values()), default=0))
        count = "1 problem" if len(names) == 1 else f"{len(names)} problems"
        lines = [f"{count} with the machines of the run; nothing was started:"]
        for message, name in names.items():
            head = f"  {name:<{width}}  "
            if len(name) > width:
                lines.append(f"  {name}")
                head = " " * (width + 4)
            lines += textwrap.wrap(
                message,
                _WIDTH,
                initial_indent=head,
                subsequent_indent=" " * (width + 4),
                break_long_words=False,
                break_on_hyphens=False,
            )
        return "\n".join(lines)

    def error(self) -> ConfigError | None:
        """Return the error that names every problem; None where there is none."""
        return ConfigError(self.table()) if self.problems else None


@dataclass(frozen=True, kw_only=True)
class Here:
    """The runner's own facts, with which those of the machines are compared."""

    versions: Mapping[str, str | None]
    files: Mapping[str, str | None]
    token: str
    """The token that the runner has left in the folders that all machines share."""
    folder_problems: Mapping[str, str] = field(default_factory=dict)
    """Why the runner could not leave the token, by folder."""
    asked: float = 0.0
    answered: Mapping[int, float] = field(default_factory=dict)
    """When each machine had answered. As for `asked`, in seconds since the epoch by the runner's clock."""


def inspect(facts: Mapping[int, HostFacts], failures: Mapping[int, str], plan: LaunchPlan, here: Here) -> Findings:
    """Return the findings about the machines of a plan; `failures` says, by number, why one could not be asked."""
    problems = [
        HostProblem("here", f"{setting} ({path}) cannot be written: {here.folder_problems[path]}; set another folder")
        for setting, path in plan.needs.folders
        if path in here.folder_problems
    ]
    problems += [
        HostProblem("here", f"{path} cannot be read; correct the path")
        for path, found in here.files.items()
        if not found
    ]
    notes: list[str] = []
    environment: dict[int, Mapping[str, str]] = {}
    for host in plan.hosts:
        if host.index in failures:
            problems.append(HostProblem(host.name, failures[host.index]))
        elif (found := facts.get(host.index)) is None:
            problems.append(HostProblem(host.name, "it said nothing about itself; try the command by hand"))
        else:
            problems += [HostProblem(host.name, message) for message in _problems(found, plan, here)]
            if (note := _loopback_note(found, plan)) is not None:
                notes.append(note)
                if found.interface is not None:
                    environment[host.index] = {_INTERFACE_VARIABLE: found.interface}
    problems += _together(facts, plan)
    return Findings(
        problems=tuple(problems),
        notes=tuple(notes),
        environment=environment,
        offsets={index: _offset(found, here) for index, found in facts.items()},
    )


def _problems(found: HostFacts, plan: LaunchPlan, here: Here) -> Iterator[str]:
    """Yield what is wrong with one machine by itself."""
    for name, version in here.versions.items():
        theirs = found.versions.get(name)
        if theirs is None and version is not None:
            yield f"{name} is not installed for its interpreter; install {name} {version}, as here"
        elif theirs != version:
            yield f"it has {name} {theirs}, but here is {version}; install the same on all machines"
    for path, digest in here.files.items():
        theirs = found.files.get(path)
        if theirs is None:
            yield f"{path} cannot be read there; put it at the same path on all machines, or on storage that they share"
        elif digest is not None and theirs != digest:
            yield f"{path} is not the same file there as here; copy it again, or keep it on storage that all share"
    for setting, path in plan.needs.folders:
        if path in here.folder_problems:
            continue
        if found.tokens.get(path) != here.token:
            yield f"{setting} ({path}) is not the same folder there as here; put it on storage that all machines share"
        elif path in found.unwritable:
            yield f"{setting} ({path}) cannot be written to there; correct its permissions"
    yield from _gpu_problems(found, plan)
    if found.port_problem is not None:
        held = ": another run or program holds it" if found.port_problem == os.strerror(errno.EADDRINUSE) else ""
        yield (
            f"the processes cannot meet at its port {plan.port(0)} ({found.port_problem}){held}; set "
            "runner.master_port to a free port above 1023"
        )
    off = _offset(found, here)
    if abs(off) > CLOCK_SECONDS:
        yield (
            f"its clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the one here; set both "
            "right (NTP): logs and first causes are told by them"
        )
    if found.index and found.master_address is not None and _is_loopback(found.master_address):
        yield (
            f"the name of the first machine, {plan.master_addr}, leads to {found.master_address} there, which is "
            "itself; correct its /etc/hosts, or set runner.master_addr to an address"
        )
    elif found.index and found.master_address is None:
        yield (
            f"the name of the first machine, {plan.master_addr}, is unknown there; set runner.master_addr to an "
            "address that all machines know"
        )


def _gpu_problems(found: HostFacts, plan: LaunchPlan) -> Iterator[str]:
    host = plan.hosts[found.index]
    if plan.needs.device == "cpu" or (plan.needs.device == "auto" and not found.gpus and host.gpus is None):
        return
    have = f"it has {len(found.gpus)} GPU{'' if len(found.gpus) == 1 else 's'}"
    if host.gpus is not None:
        if missing := [number for number in host.gpus if number not in found.gpus]:
            yield f"{have}, but slots name GPU {', '.join(map(str, missing))}; correct runner.hosts"
    elif len(found.gpus) < host.processes:
        slots = "1 slot" if host.processes == 1 else f"{host.processes} slots"
        yield f"{have}, but {slots}; correct runner.hosts, or set topology.device to cpu"


def _together(facts: Mapping[int, HostFacts], plan: LaunchPlan) -> Iterator[HostProblem]:
    """Yield what is wrong with machines when they are compared with each other."""
    machines: dict[str, list[str]] = {}
    for index in sorted(facts):
        machines.setdefault(facts[index].identity or str(index), []).append(plan.hosts[index].name)
    for names in machines.values():
        if len(names) > 1:
            yield HostProblem(
                ", ".join(names), "are names of one machine; give it one line in runner.hosts, with all its slots"
            )
    first = min(facts, default=0)
    for index in sorted(facts):
        if facts[index].source != facts[first].source:
            yield HostProblem(
                plan.hosts[index].name,
                f"its scaling is of other source files than that of {plan.hosts[first].name}, although they have one "
                "version; install the same, or keep it on storage that all machines share",
            )
    if plan.needs.device == "auto":
        without = [plan.hosts[index].name for index in sorted(facts) if not facts[index].gpus]
        if without and len(without) < len(facts):
            for name in without:
                yield HostProblem(
                    name, "it has no GPU, but others have some; leave it out, or set topology.device to cpu"
                )


def _loopback_note(found: HostFacts, plan: LaunchPlan) -> str | None:
    """Return a note about a machine whose own name does not resolve to an address at which others reach it."""
    if len(plan.hosts) == 1 or _INTERFACE_VARIABLE in plan.environment:
        return None
    if found.own_address is not None and not _is_loopback(found.own_address):
        return None
    leads = "is unknown there" if found.own_address is None else f"leads to {found.own_address} there"
    what = f"the name of {found.hostname} {leads}, at which gloo would offer itself to the others in vain"
    if found.interface is None:
        return f"{what}; if the processes cannot connect, set {_INTERFACE_VARIABLE} to the interface that others reach"
    peer = plan.master_addr if found.index else plan.hosts[1].name
    return (
        f"{what}: {_INTERFACE_VARIABLE}={found.interface}, which leads to {peer}, is set for it in this run. Better: "
        "give it its address in its /etc/hosts"
    )


def _offset(found: HostFacts, here: Here) -> float:
    """Return by how many seconds at least a clock is ahead of the one here (negative: behind); 0 if it may be right."""
    received = here.answered.get(found.index, here.asked)
    return min(0.0, found.time - here.asked) or max(0.0, found.time - received)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
