"""RunnerConfig: where the processes of a run are started, and how."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import NoEffect, OnResume
from scaling.core.errors import Problem


class RunnerType(str, Enum):
    """How processes are started."""

    LOCAL = "local"
    PDSH = "pdsh"
    PDSH_DOCKER = "pdsh_docker"


class RunnerDockerConfig(BaseConfig):
    """The container of pdsh_docker."""

    docker_container: str | None = None
    """Name of the image. Has no effect: no container is started. null: none, which pdsh_docker does not accept."""
    docker_sudo: bool = False
    """Call docker through sudo. Has no effect, either."""
    docker_mounts: list[list[str]] | None = None
    """Folders to mount: pairs of [path on the host, path in the container]. Has no effect, either. null: none."""

    def problems(self) -> Iterator[Problem]:
        """Check that mounts are pairs."""
        for index, mount in enumerate(self.docker_mounts or ()):
            if len(mount) != 2:
                yield Problem(
                    f"docker_mounts.{index}", f"has {len(mount)} parts; write [path on the host, path in the container]"
                )

    def notes(self) -> Iterator[Problem]:
        """Yield what is meant for a container."""
        for name in ("docker_container", "docker_sudo", "docker_mounts"):
            if getattr(self, name):
                yield Problem(name, "has no effect: no container is started; start the command inside of one")


class RunnerConfig(BaseConfig):
    """Where the processes of a run are started. Their number is topology.world_size."""

    on_resume = OnResume.RUNTIME

    former_names: ClassVar[Mapping[str, str]] = {"hostfile": "hostsfile"}

    runner_type: RunnerType = RunnerType.LOCAL
    """local, pdsh (over ssh) or pdsh_docker. All of them start processes on this machine only: where hosts names
    others, the error says what to run on each. Inside torchrun or srun nothing is started."""
    hostsfile: Path | None = None
    """File with a line for each machine: `name`, `name slots=4` or `name slots=0,2`. null: hosts, else this machine."""
    hosts: list[str] | None = None
    """The same lines here instead of in a file. null: hostsfile, else this machine."""
    master_addr: str | None = None
    """Address at which the others reach the first machine. null: its name in hosts."""
    master_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the first machine at which the processes meet. null: a free one on one machine, 29500 across machines."""
    script: Path | None = None
    """Training script that each process runs. null: the one that was started."""
    default_gpu_count: int = Field(default=8, ge=1)
    """Processes on a machine whose line names no slots."""
    docker_config: RunnerDockerConfig = Field(default_factory=RunnerDockerConfig)
    """The container of pdsh_docker."""
    use_determined: Annotated[bool, NoEffect("determined is no longer supported")] = False
    """Formerly: run under determined."""

    def problems(self) -> Iterator[Problem]:
        """Check that hosts are given once, are host names, and that containers have an image."""
        if self.hostsfile is not None and self.hosts is not None:
            yield Problem("hosts", f"is given together with hostsfile ({str(self.hostsfile)!r}); remove one")
        for index, host in enumerate(self.hosts or ()):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*(\s+slots=\d+(,\d*)*)?", host.strip()):
                yield Problem(f"hosts.{index}", f"is {host!r}; write `name`, `name slots=4` or `name slots=0,2`")
        if self.runner_type is RunnerType.PDSH_DOCKER and self.docker_config.docker_container is None:
            yield Problem("docker_config.docker_container", "is needed for pdsh_docker: the name of the image")
