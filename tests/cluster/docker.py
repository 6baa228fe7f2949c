"""Docker: a daemon on each host, and an image that has nothing in it; containers get this machine's folders mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from tests.cluster.hosts import Hosts, command_line
from tests.processes import wait_until

IMAGE = "empty:latest"
_DAEMON_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Docker:
    """Docker on all hosts, while the context lasts. Sessions of ssh find DOCKER_HOST, so that `docker` just works."""

    def __init__(self, hosts: Hosts, *, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for host in self.hosts.names:
                self._start(host)
            for host in self.hosts.names:
                self._wait_for(host)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.hosts.keep()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # SIGTERM lets them end their containers and containerd; the hosts kill what is left.
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def socket(self, host: str) -> str:
        """Return what DOCKER_HOST is on a host."""
        return f"unix://{self.folder / host}.sock"

    def containers(self) -> dict[str, list[str]]:
        """Return the names of all containers, by host, ended ones included; only hosts that have some."""
        found = {host: self._docker(host, "ps", "--all", "--format", "{{.Names}}").split() for host in self.hosts.names}
        return {host: names for host, names in found.items() if names}

    def mounts(self) -> list[list[str]]:
        """Return the folders that a training needs, as pairs for `docker_mounts`."""
        wanted = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/root", "/tmp"]
        wanted += [str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, Path.cwd(), self.folder)]
        kept: list[str] = []
        for path in wanted:
            inside = any(Path(path).is_relative_to(other) for other in kept)
            if Path(path).exists() and not inside:
                kept.append(path)
        return [[path, path] for path in kept]

    def _start(self, host: str) -> None:
        data, state = self.folder / f"{host}.data", self.folder / f"{host}.exec"
        data.mkdir(parents=True, exist_ok=True)
        options = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"]
        places = ["--data-root", data, "--exec-root", state, "-p", self.folder / f"{host}.pid", "-H", self.socket(host)]
        with open(self.folder / f"{host}.log", "ab") as log:
            self._daemons[host] = self.hosts.popen(
                host,
                [shutil.which("dockerd", path=_DAEMON_PATH), *options, *places],
                cgroups=True,
                env={"PATH": _DAEMON_PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_for(self, host: str) -> None:
        def answers() -> bool:
            log = self.folder / f"{host}.log"
            assert self._daemons[host].poll() is None, log.read_text()[-2000:]
            return self._call(host, "version").returncode == 0

        wait_until(answers, f"the dockerd of {host} does not answer", seconds=60)
        nothing = subprocess.run(["tar", "c", "--files-from", "/dev/null"], capture_output=True, check=True).stdout
        done = self._call(host, "import", "-", IMAGE, input=nothing)
        assert done.returncode == 0, done.stderr
        self.hosts.set_variables(host, {"DOCKER_HOST": self.socket(host)})

    def _docker(self, host: str, *arguments: str) -> str:
        done = self._call(host, *arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _call(self, host: str, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        # The socket is a file, which is reached from everywhere.
        environment = {**os.environ, "DOCKER_HOST": self.socket(host)}
        return subprocess.run(["docker", *arguments], env=environment, input=input, capture_output=True, check=False)


def shims(hosts: Hosts) -> list[str]:
    """Return the command lines of what watches over containers."""
    return [line for name in hosts.names for line in map(command_line, hosts.pids(name)) if "containerd-shim" in line]
