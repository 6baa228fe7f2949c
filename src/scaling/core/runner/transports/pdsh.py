"""One pdsh for all machines, over ssh.

It passes no standard input on, but keeps that of every machine open for as long as it lives: so orders travel as a
file, and the lifeline is pdsh itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling.core.errors import ConfigError, Problem
from scaling.core.runner.plan import HostPlan, LaunchPlan
from scaling.core.runner.transports.client import Client, Verb, chosen, remote_command
from scaling.core.runner.transports.ssh import by_ssh, ssh_options

RANK = "%n"
"""What pdsh replaces by the number of a machine, in the order in which machines are named to it."""
_MARK = "@number-of-the-machine@"
"""Stands for the number while a command is put together; no shell wants it quoted."""


@dataclass(frozen=True)
class Pdsh:
    """Transport `pdsh`; `config` is a file of settings for ssh instead of the user's own."""

    config: Path | None = None
    needs_file = True
    stdin_follows = False

    def clients(
        self,
        plan: LaunchPlan,
        verb: Verb,
        *,
        order_file: Path | None = None,
        signal: str | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Client]:
        """Return one pdsh for all machines; for some of them only, one for each."""

        def command(host: HostPlan, index: str) -> str:
            return remote_command(plan, verb, index=index, order_file=order_file, signal=signal)

        return pdsh_clients(plan, command, config=self.config, only=only)

    def by_hand(self, host: HostPlan) -> str:
        """Return the ssh command that only tries to get in."""
        return by_ssh(self.config, host)


def pdsh_clients(
    plan: LaunchPlan, command: Callable[[HostPlan, str], str], *, config: Path | None, only: Sequence[int] | None
) -> list[Client]:
    """Return one pdsh that runs `command` on all machines, or one for each where `only` names some.

    `command` gets a machine, and its number as text: for all machines at once the first one, and what pdsh replaces.
    """
    if only is None:
        return [_client([*plan.hosts], _escaped(command, plan.hosts[0], RANK), config)]
    return [_client([host], _escaped(command, host, str(host.index)), config) for host in chosen(plan, only)]


def _client(hosts: Sequence[HostPlan], command: str, config: Path | None) -> Client:
    names = ",".join(map(_named, hosts))
    return Client(
        argv=("pdsh", "-R", "ssh", "-S", "-t", "5", "-f", str(max(32, len(hosts))), "-w", names, command),
        hosts=tuple(host.index for host in hosts),
        takes_input=False,
        names_lines=True,
        environment={"PDSH_SSH_ARGS_APPEND": _ssh_arguments(config)},
    )


def _named(host: HostPlan) -> str:
    """Return a machine as pdsh takes it: what stands before a colon is the way to reach it, be it of an address."""
    if ":" not in host.name:
        return host.name
    if "@" in host.name:
        raise ConfigError(
            Problem(
                "runner.hosts",
                f"names {host.name!r}, but pdsh takes no user with an IPv6 address; set User in the ssh configuration, "
                "or set runner.runner_type to ssh",
            )
        )
    return f"ssh:{host.name}"


def _ssh_arguments(config: Path | None) -> str:
    """Return the options of ssh as pdsh takes them: it splits at spaces, knows no quotes, and replaces escapes."""
    if config is not None and re.search(r"\s", str(config)):
        raise ConfigError(
            Problem(
                "runner.ssh_config",
                f"is {str(config)!r}, but pdsh can pass on no path with a space; rename it, or set runner.runner_type "
                "to ssh",
            )
        )
    return " ".join(ssh_options(config)).replace("%", "%%")


def _escaped(command: Callable[[HostPlan, str], str], host: HostPlan, index: str) -> str:
    """Double what pdsh would take for an escape of its own, as in a path; the number alone is left to it."""
    return command(host, _MARK).replace("%", "%%").replace(_MARK, index)
