"""One ssh for each machine: the order and the lifeline go through its standard input."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaling.core.runner.plan import HostPlan, LaunchPlan
from scaling.core.runner.transports.client import Client, Verb, chosen, remote_command


@dataclass(frozen=True)
class Ssh:
    """Transport `ssh`; `config` is a configuration file of ssh, instead of the user's own."""

    config: Path | None = None
    needs_file = False
    stdin_follows = True

    def clients(
        self,
        plan: LaunchPlan,
        verb: Verb,
        *,
        order_file: Path | None = None,
        signal: str | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Client]:
        """Return an ssh for each machine."""
        return [
            Client(
                argv=(
                    *("ssh", "-T", *ssh_options(self.config), "--", host.name),
                    remote_command(plan, verb, index=str(host.index), order_file=order_file, signal=signal),
                ),
                hosts=(host.index,),
                takes_input=verb in (Verb.RUN, Verb.LOOK),
                names_lines=False,
            )
            for host in chosen(plan, only)
        ]

    def by_hand(self, host: HostPlan) -> str:
        """Return the ssh command that only tries to log in."""
        return by_ssh(self.config, host)


def ssh_options(config: Path | None) -> list[str]:
    """Return the options of every ssh: it asks for no input, and notices a dead connection within 20 seconds.

    No connection is shared with another ssh of the user: that ssh may outlive this one, and keep alive what this one
    started.
    """
    settings = {
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",
        "ControlPath": "none",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    return options if config is None else ["-F", str(config), *options]


def by_ssh(config: Path | None, host: HostPlan) -> str:
    """Return the ssh command that only tries to log in."""
    return shlex.join(["ssh", *([] if config is None else ["-F", str(config)]), host.name, "true"])
