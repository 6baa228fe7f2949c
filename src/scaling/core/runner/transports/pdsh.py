"""One pdsh for all machines, over ssh.

pdsh passes no standard input on, but keeps that of every machine open for as long as it runs: so orders travel as a
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
"""Placeholder that pdsh replaces by the number of a machine, in the order in which the machines are given to it."""
_MARK = "@number-of-the-machine@"
"""Placeholder for the number while a command is built; it needs no quotes in a shell."""


@dataclass(frozen=True)
class Pdsh:
    """Transport `pdsh`; `config` is a configuration file of ssh, instead of the user's own."""

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
        """Return one pdsh for all machines, or one for each if only some are chosen."""

        def command(host: HostPlan, index: str) -> str:
            return remote_command(plan, verb, index=index, order_file=order_file, signal=signal)

        return pdsh_clients(plan, command, config=self.config, only=only)

    def by_hand(self, host: HostPlan) -> str:
        """Return the ssh command that only tries to log in."""
        return by_ssh(self.config, host)


def pdsh_clients(
    plan: LaunchPlan, command: Callable[[HostPlan, str], str], *, config: Path | None, only: Sequence[int] | None
) -> list[Client]:
    """Return one pdsh that runs `command` on all machines, or one for each where `only` names some.

    `command` gets a machine, and its number as text: for all machines at once, the first machine and pdsh's
    placeholder.
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
    """Return a machine's name for pdsh, which takes text before a colon, even in an address, for a transport."""
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
    """Return the options of ssh for pdsh, which splits them at spaces, knows no quotes, and replaces escapes."""
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
    """Double each percent sign, which pdsh would take for an escape; only the number is left for pdsh to replace."""
    return command(host, _MARK).replace("%", "%%").replace(_MARK, index)
