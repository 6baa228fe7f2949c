"""Ways to start nodes on other machines: pure functions from a plan to the programs that reach them."""

from __future__ import annotations

import shutil
from typing import Final

from scaling.core.errors import ConfigError, Problem
from scaling.core.runner.config import RunnerConfig, RunnerType
from scaling.core.runner.transports.client import Transport
from scaling.core.runner.transports.docker import PdshDocker
from scaling.core.runner.transports.pdsh import Pdsh
from scaling.core.runner.transports.ssh import Ssh

_PACKAGES: Final = {"ssh": "openssh-client", "pdsh": "pdsh", "docker": "docker.io"}


def transport_of(config: RunnerConfig) -> Transport:
    """Return the transport of ssh, pdsh or pdsh_docker."""
    match config.runner_type:
        case RunnerType.SSH:
            return Ssh(config.ssh_config)
        case RunnerType.PDSH:
            return Pdsh(config.ssh_config)
        case RunnerType.PDSH_DOCKER:
            return PdshDocker(config.docker_config, config.ssh_config)
        case kind:
            raise ValueError(f"{kind.value} reaches no machines by itself")


def require_programs(config: RunnerConfig, *, alone: bool = False) -> None:
    """Raise `ConfigError` where a program by which machines are reached is missing; `alone`: no other machine is."""
    needed = {
        RunnerType.SSH: ["ssh"],
        RunnerType.PDSH: ["pdsh", "ssh"],
        RunnerType.PDSH_DOCKER: ["docker"] if alone else ["pdsh", "ssh"],
    }
    missing = [name for name in needed.get(config.runner_type, ()) if shutil.which(name) is None]
    if missing:
        packages = " ".join(_PACKAGES[name] for name in missing)
        raise ConfigError(
            Problem(
                "runner.runner_type",
                f"is {config.runner_type.value}, but there is no {' and no '.join(missing)} on this machine; install "
                f"it (on Debian: apt install {packages})",
            )
        )
