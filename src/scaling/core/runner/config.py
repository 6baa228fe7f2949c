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
from scaling.core.runner.hosts import host_line_problem

FORWARDED = ("NCCL_*", "GLOO_*", "UCX_*", "TORCH_*", "OMP_*", "PYTHON*")
"""Variables that processes on other machines get unless the configuration says otherwise."""


class RunnerType(str, Enum):
    """How processes are started."""

    LOCAL = "local"
    SSH = "ssh"
    PDSH = "pdsh"
    PDSH_DOCKER = "pdsh_docker"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"


class RunnerDockerConfig(BaseConfig):
    """The container in which pdsh_docker starts processes."""

    docker_container: str | None = None
    """Name of the image. null: none, which pdsh_docker does not accept."""
    docker_sudo: bool = False
    """Call docker through `sudo -n`, which asks for no password."""
    docker_mounts: list[list[str]] | None = None
    """Folders to mount: pairs of [path on the host, path in the container]. null: none."""
    docker_privileged: bool = False
    """Give the container all rights over the host, as some network drivers need."""

    def problems(self) -> Iterator[Problem]:
        """Check that mounts are pairs of absolute paths."""
        for index, mount in enumerate(self.docker_mounts or ()):
            if len(mount) != 2:
                yield Problem(
                    f"docker_mounts.{index}", f"has {len(mount)} parts; write [path on the host, path in the container]"
                )
            elif bad := [path for path in mount if not path.startswith("/") or ":" in path]:
                yield Problem(f"docker_mounts.{index}", f"has {bad[0]!r}; write absolute paths without a colon")


class RunnerSlurmConfig(BaseConfig):
    """The job that is submitted to Slurm."""

    partition: str | None = None
    """Partition to run in. null: the cluster's default."""
    account: str | None = None
    """Account to charge. null: your default."""
    qos: str | None = None
    """Quality of service. null: the cluster's default."""
    time: str | None = None
    """Longest time the job may take, in the notation of sbatch: `minutes`, `hours:minutes:seconds` or `days-hours`.
    null: the partition's default."""
    constraint: str | None = None
    """Features the machines must have. null: none."""
    gpus: int | None = Field(default=None, ge=1)
    """GPUs of each machine, one for each process. null: no GPUs are requested."""
    signal_seconds: int = Field(default=120, ge=1, le=65535)
    """Seconds before the end of the job's time at which the job is asked to save and leave. Slurm may be a minute
    early."""
    lines: list[str] = Field(default_factory=list)
    """Further options of sbatch, such as `--exclusive`; each becomes an #SBATCH line."""

    def problems(self) -> Iterator[Problem]:
        """Check that no value breaks the line that it is written to."""
        for name in ("partition", "account", "qos", "time", "constraint"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[^\s'\"]+", value):
                yield Problem(name, f"is {value!r}; write it as sbatch takes it, without spaces and quotes")
        for index, line in enumerate(self.lines):
            if not re.fullmatch(r"--?\w[^\n\r]*", line):
                yield Problem(f"lines.{index}", f"is {line!r}; write one option of sbatch, such as `--exclusive`")


class RunnerKubernetesConfig(BaseConfig):
    """The JobSet that is written for Kubernetes."""

    image: str | None = None
    """Container image that has this library. null: none, which kubernetes does not accept."""
    name: str = "scaling"
    """Name of the JobSet, and prefix of the names of all objects that belong to it."""
    namespace: str | None = None
    """Namespace. null: that of the user who applies the manifest."""
    python: str = "python3"
    """Interpreter in the image."""
    gpu_resource: str | None = "nvidia.com/gpu"
    """Resource by which GPUs are requested, one for each process. null: no GPUs."""
    cpu: str | None = None
    """Processors of each pod, such as "16". null: the cluster's default."""
    memory: str | None = None
    """Memory of each pod, such as "256Gi". null: the cluster's default."""
    volumes: list[list[str]] = Field(default_factory=list)
    """Persistent volumes: pairs of [name of the claim, path in the container]. Data and checkpoints belong there."""
    secrets: dict[str, str] = Field(default_factory=dict)
    """Variables from Secrets: {NAME: "secret/key"}, such as {WANDB_API_KEY: "wandb/key"}."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the machines must have."""
    grace_seconds: int = Field(default=300, ge=1)
    """How long a pod that is asked to leave may take to save."""

    def problems(self) -> Iterator[Problem]:
        """Check names by the rules of Kubernetes."""
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?", self.name):
            yield Problem("name", f"is {self.name!r}; write up to 32 of a-z, 0-9 and -, beginning with a letter")
        for index, volume in enumerate(self.volumes):
            if len(volume) != 2 or not volume[1].startswith("/"):
                yield Problem(f"volumes.{index}", f"is {volume}; write [name of the claim, path in the container]")
        for name, source in self.secrets.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                yield Problem(f"secrets.{name}", "is no name of a variable; write letters, digits and _")
            if not re.fullmatch(r"[-a-z0-9.]+/[-._A-Za-z0-9]+", source):
                yield Problem(
                    f"secrets.{name}", "is not of the form secret/key; name the Secret and its key, never the value"
                )


class RunnerConfig(BaseConfig):
    """Where the processes of a run are started. Their number is topology.world_size."""

    on_resume = OnResume.RUNTIME

    former_names: ClassVar[Mapping[str, str]] = {"hostfile": "hostsfile"}

    runner_type: RunnerType = RunnerType.LOCAL
    """local: on this machine; ssh, pdsh: on the machines in hosts; pdsh_docker: on these machines, in containers;
    slurm: as a job, or inside one; kubernetes: writes a manifest. Inside torchrun or srun nothing is started."""
    hostsfile: Path | None = None
    """File with a line for each machine: `name`, `name slots=4` or `name slots=0,2`. null: hosts, else this machine."""
    hosts: list[str] | None = None
    """The lines of a hostsfile, here instead of in a file. null: hostsfile, else this machine."""
    master_addr: str | None = None
    """Address at which the others reach the first machine. null: its name in hosts."""
    master_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the first machine at which the processes meet; restarts use the next ones. null: a free port on one
    machine, 29500 across machines, one derived from the job's number under slurm."""
    script: Path | None = None
    """Training script that each process runs. null: the one that was started."""
    default_gpu_count: int = Field(default=8, ge=1)
    """Processes on a machine whose line names no slots, and on each machine of slurm and kubernetes."""
    max_restarts: int = Field(default=0, ge=0)
    """How often the whole run is restarted from its newest checkpoint after it has failed. It is not restarted after an
    error in your input (status 2) or refused data (65), or when it was asked to leave (75)."""
    ssh_config: Path | None = None
    """Configuration of ssh, for keys, ports and jump hosts. null: your own, ~/.ssh/config."""
    numa_binding: bool = False
    """Keep each process on the cores, and so in the memory, of one NUMA node: that of its GPU; without GPUs, processes
    take the nodes in turn. An error on a machine with one node."""
    forward_environment: list[str] = Field(default_factory=lambda: [*FORWARDED])
    """Patterns of the variables of this machine that processes on other machines get. A variable with KEY, TOKEN,
    SECRET or PASSWORD in its name is never written anywhere: it is sent over ssh's standard input, or taken from the
    other machine's own environment."""
    docker_config: RunnerDockerConfig = Field(default_factory=RunnerDockerConfig)
    """The container in which pdsh_docker starts processes."""
    slurm: RunnerSlurmConfig = Field(default_factory=RunnerSlurmConfig)
    """The job that is submitted to Slurm."""
    kubernetes: RunnerKubernetesConfig = Field(default_factory=RunnerKubernetesConfig)
    """The JobSet that is written for Kubernetes."""
    use_determined: Annotated[bool, NoEffect("determined is no longer supported")] = False
    """Formerly: run under determined."""

    def problems(self) -> Iterator[Problem]:
        """Check that hosts are given once and are host names, and that containers have an image."""
        if self.hostsfile is not None and self.hosts is not None:
            yield Problem("hosts", f"is given together with hostsfile ({str(self.hostsfile)!r}); remove one")
        for index, host in enumerate(self.hosts or ()):
            if problem := host_line_problem(host):
                yield Problem(f"hosts.{index}", problem)
        if self.runner_type is RunnerType.PDSH_DOCKER and self.docker_config.docker_container is None:
            yield Problem("docker_config.docker_container", "is needed for pdsh_docker: the name of the image")
        if self.runner_type is RunnerType.KUBERNETES and self.kubernetes.image is None:
            yield Problem("kubernetes.image", "is needed for kubernetes: an image that has this library")
        for index, pattern in enumerate(self.forward_environment):
            if not re.fullmatch(r"[A-Za-z_*?][A-Za-z0-9_*?]*", pattern):
                yield Problem(f"forward_environment.{index}", f"is {pattern!r}; write a name, with * for any letters")

    def notes(self) -> Iterator[Problem]:
        """Yield sections that belong to another runner_type."""
        sections = {
            "docker_config": RunnerType.PDSH_DOCKER,
            "slurm": RunnerType.SLURM,
            "kubernetes": RunnerType.KUBERNETES,
        }
        for name, kind in sections.items():
            if self.runner_type is not kind and getattr(self, name) != type(getattr(self, name))():
                yield Problem(name, f"has no effect: runner_type is {self.runner_type.value}, not {kind.value}")
