"""A container on each machine, started through pdsh, or directly where the machine is this one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from scaling.core.runner.config import RunnerDockerConfig
from scaling.core.runner.plan import HostPlan, LaunchPlan
from scaling.core.runner.transports.client import Client, Verb, chosen, node_arguments, node_variables
from scaling.core.runner.transports.pdsh import pdsh_clients
from scaling.core.runner.transports.ssh import by_ssh

_GPUS_IF_ANY = "$(ls /dev/nvidia[0-9]* >/dev/null 2>&1 && echo --gpus all)"
"""For the shell of the machine, which alone knows whether its slots are GPUs."""


@dataclass(frozen=True)
class PdshDocker:
    """Transport `pdsh_docker`: containers of one image; `config` is a configuration file of ssh."""

    docker: RunnerDockerConfig
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
        """Return one pdsh for all machines, one for each if only some are chosen or GPUs differ, none for this one
        alone."""
        if all(host.name == "localhost" for host in plan.hosts):
            return [
                Client(
                    argv=(
                        "sh",
                        "-c",
                        docker_command(plan, host, verb, self.docker, index="0", order_file=order_file, signal=signal),
                    ),
                    hosts=(host.index,),
                    takes_input=False,
                    names_lines=False,
                )
                for host in chosen(plan, only)
            ]
        if only is None and len({host.gpus for host in plan.hosts}) > 1:  # pdsh has one command for all of them
            only = [host.index for host in plan.hosts]

        def command(host: HostPlan, index: str) -> str:
            return docker_command(plan, host, verb, self.docker, index=index, order_file=order_file, signal=signal)

        return pdsh_clients(plan, command, config=self.config, only=only)

    def by_hand(self, host: HostPlan) -> str:
        """Return the command that only tries to start a container."""
        prefix = ["sudo", "-n"] if self.docker.docker_sudo else []
        run = shlex.join([*prefix, "docker", "run", "--rm", "--pull=never", str(self.docker.docker_container), "true"])
        if host.name == "localhost":
            return run
        return f"{by_ssh(self.config, host).removesuffix(' true')} {shlex.quote(run)}"


def container_name(plan: LaunchPlan, index: str, verb: Verb = Verb.RUN) -> str:
    """Return the name of a container of this run; the container of `Verb.LOOK` has another name."""
    suffix = "-look" if verb is Verb.LOOK else ""
    return f"scaling-{plan.run_id}-{index}{suffix}"


def docker_command(
    plan: LaunchPlan,
    host: HostPlan,
    verb: Verb,
    docker: RunnerDockerConfig,
    *,
    index: str,
    order_file: Path | None = None,
    signal: str | None = None,
) -> str:
    """Return the line for the shell of a machine.

    The interpreter of the plan is used where it lies in a mounted folder, else the image's own `python3`. The working
    directory is mounted at its own path unless it lies in a mounted folder. Docker takes the values of secrets from its
    own environment on that machine.
    """
    call = [*(["sudo", "-n"] if docker.docker_sudo else []), "docker"]
    if verb is Verb.ASK:
        return shlex.join([*call, "kill", f"--signal={signal}", container_name(plan, index)])
    if verb is Verb.CLEAR:
        return shlex.join([*call, "rm", "-f", container_name(plan, index), container_name(plan, index, Verb.LOOK)])
    mounts = [tuple(mount) for mount in docker.docker_mounts or ()]
    if not _is_mounted(plan.directory, mounts):
        mounts.append((plan.directory, plan.directory))
    before = [
        *call,
        *("run", "-i", "--rm", "--pull=never", "--name", container_name(plan, index, verb)),
        *("--network=host", "--ipc=host", "--ulimit", "stack=67108864"),
        *(["--privileged"] if docker.docker_privileged else []),
        *(part for source, target in mounts for part in ("-v", f"{source}:{target}")),
        *("-w", plan.directory),
        *(part for name, value in node_variables(plan, index=index).items() for part in ("--env", f"{name}={value}")),
        *(part for name in plan.secrets for part in ("--env", name)),
    ]
    interpreter = plan.interpreter if _is_mounted(plan.interpreter, mounts) else "python3"
    arguments = node_arguments(plan, verb, index=index, order_file=order_file, signal=signal)
    after = [str(docker.docker_container), interpreter, *arguments]
    return f"exec {shlex.join(before)} {_gpus(plan, host)}{shlex.join(after)}"


def _gpus(plan: LaunchPlan, host: HostPlan) -> str:
    if host.gpus is not None:
        return shlex.join(["--gpus", f'"device={",".join(map(str, host.gpus))}"']) + " "
    return "" if plan.needs.device == "cpu" else f"{_GPUS_IF_ANY} "


def _is_mounted(path: str, mounts: Sequence[tuple[str, ...]]) -> bool:
    return any(PurePosixPath(path).is_relative_to(target) for _, target in mounts)
