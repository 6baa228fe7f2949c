"""Client: a program on this machine through which other machines are reached, and the verbs for their nodes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from scaling.core.runner.environment import NODE_VARIABLE
from scaling.core.runner.plan import HostPlan, LaunchPlan

NODE_MODULE: Final = "scaling.core.runner.node"


class Verb(str, Enum):
    """The purpose for which a node is started."""

    RUN = "run"
    """Start the processes of this machine, and watch them."""
    LOOK = "look"
    """Report the facts about this machine."""
    ASK = "ask"
    """Ask the node of this machine to leave."""
    CLEAR = "clear"
    """Kill what is left of the run on this machine."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """A process to start on this machine, for one other machine or for several."""

    argv: tuple[str, ...]
    hosts: tuple[int, ...]
    """The machines that it serves, by their number in the plan."""
    takes_input: bool
    """Whether its standard input reaches the node: the order goes that way, and then the lifeline."""
    names_lines: bool
    """Whether it puts the machine's name before each line itself."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for this process, besides those of its parent."""


class Transport(Protocol):
    """A way to start nodes. Pure: it says what to start."""

    @property
    def needs_file(self) -> bool:
        """Return whether an order travels as a file that every machine can read."""

    @property
    def stdin_follows(self) -> bool:
        """Return whether a node can be asked to leave over standard input; else by `Verb.ASK`."""

    def clients(
        self,
        plan: LaunchPlan,
        verb: Verb,
        *,
        order_file: Path | None = None,
        signal: str | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Client]:
        """Return the clients that carry out `verb` on all machines of the plan, or on those of the numbers `only`.

        `signal` (TERM or USR1) is for `Verb.ASK`; `order_file` for `Verb.RUN` and `Verb.LOOK`, where orders need a
        file.
        """

    def by_hand(self, host: HostPlan) -> str:
        """Return a command with which a person can try to reach a machine."""


def node_arguments(
    plan: LaunchPlan, verb: Verb, *, index: str, order_file: Path | None = None, signal: str | None = None
) -> list[str]:
    """Return the arguments with which Python runs the node; paths, names and numbers only."""
    arguments = ["-u", "-m", NODE_MODULE, verb.value, "--index", index, "--run", plan.run_id]
    if order_file is not None:
        arguments += ["--order", str(order_file)]
    if signal is not None:
        arguments += ["--signal", signal]
    return arguments


def node_variables(plan: LaunchPlan, *, index: str) -> dict[str, str]:
    """Return the variables that a node needs before it can read its order."""
    variables = {NODE_VARIABLE: f"{plan.run_id}/{index}"}
    if path := plan.environment.get("PYTHONPATH"):
        variables["PYTHONPATH"] = path
    return variables


def remote_command(
    plan: LaunchPlan, verb: Verb, *, index: str, order_file: Path | None = None, signal: str | None = None
) -> str:
    """Return the command line for the shell of another machine."""
    variables = [f"{name}={value}" for name, value in node_variables(plan, index=index).items()]
    arguments = node_arguments(plan, verb, index=index, order_file=order_file, signal=signal)
    program = shlex.join(["env", *variables, plan.interpreter, *arguments])
    return f"cd {shlex.quote(plan.directory)} && exec {program}"


def chosen(plan: LaunchPlan, only: Sequence[int] | None) -> list[HostPlan]:
    """Return the machines of these numbers; all of them for None."""
    return [host for host in plan.hosts if only is None or host.index in only]
