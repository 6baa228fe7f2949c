"""Hosts: machines on one machine, each a network namespace with a name, an address, /etc/hosts and an sshd of its own.

They share the file system, the processes' numbers and the clock. Needs root, and the programs of `requirements`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from typing_extensions import Self

from tests.processes import wait_until

PROGRAMS = {
    "openssh-server": ("sshd", "ssh-keygen"),
    "openssh-client": ("ssh",),
    "pdsh": ("pdsh",),
    "iproute2": ("ip",),
    "util-linux": ("unshare", "nsenter"),
    "docker.io": ("dockerd", "docker"),
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "srun"),
    "munge": ("munged",),
}
"""Debian packages, and what is needed of them."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NETNS = Path("/run/netns")
_ETC = Path("/etc/netns")
_BEDS = 8
"""How many sets of hosts may stand at a time. The names of namespaces are the machine's: each set has a number."""


def requirements() -> list[str]:
    """Return what this machine lacks for hosts; nothing where it can have them."""
    missing = [
        f"{program} (Debian: {package})"
        for package, programs in PROGRAMS.items()
        for program in programs
        if shutil.which(program, path=_PATH) is None
    ]
    if os.geteuid() != 0:
        return [*missing, "root"]
    if not missing:
        trial = f"scaling-trial-{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            return [f"the right to make network namespaces: {made.stderr.strip()}"]
        _ip("netns", "del", trial)
    return missing


class Hosts:
    """Some hosts in a network of their own, while the context lasts. What a killed run has left is removed before.

    `folder` gets their keys and logs, and `tmp`, the TMPDIR of what is started by ssh.
    """

    def __init__(self, names: Sequence[str] = ("h1", "h2"), *, folder: Path) -> None:
        self.names = tuple(names)
        self.folder = folder
        self.tmp = folder / "tmp"
        self.ssh_config = folder / "ssh_config"
        self._lock: IO[str] | None = None
        self.prefix = ""
        """What the names of its network namespaces begin with."""
        self._sshd: dict[str, subprocess.Popen[bytes]] = {}
        self._variables: dict[str, dict[str, str]] = {name: {} for name in names}
        self._services: dict[str, set[int]] = {name: set() for name in names}
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        self.prefix = self._take_number()
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.prefix)
        for process in (*self._started, *self._sshd.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if self._lock is not None:
            self._lock.close()

    def address(self, name: str) -> str:
        """Return the address of a host."""
        return f"10.77.0.{1 + self.names.index(name)}"

    def run(
        self, host: str, argv: Sequence[object], *, timeout: float = 120, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; it inherits this process's environment and folder, not the host's."""
        process = self.popen(host, argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate(timeout=10)
            raise AssertionError(f"{argv} did not end within {timeout} s:\n{output}\n{errors}") from None
        finally:
            self._started.remove(process)
        assert process.returncode == 0 or not check, f"{argv} ended with {process.returncode}:\n{output}\n{errors}"
        return subprocess.CompletedProcess([str(one) for one in argv], process.returncode, output, errors)

    def popen(
        self, host: str, argv: Sequence[object], *, cgroups: bool = False, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command on a host; the process is the command itself.

        `cgroups`: it sees this machine's /sys, which daemons that make control groups need, instead of the host's.
        """
        space = self._space(host)
        command = [str(argument) for argument in argv]
        if cgroups:
            binds = "".join(f"mount --bind {file} /etc/{file.name}; " for file in sorted((_ETC / space).iterdir()))
            shell = f'hostname {host}; {binds}exec "$@"'
            enter = ["nsenter", f"--net={_NETNS / space}", "unshare", "--uts", "--mount", "sh", "-ec", shell, "sh"]
        else:
            enter = ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-ec", f'hostname {host}; exec "$@"', "sh"]
        process = subprocess.Popen([*enter, *command], **options)
        self._started.append(process)
        return process

    def pids(self, host: str) -> list[int]:
        """Return the processes on a host, without its sshd and its other services."""
        return sorted(set(_pids(self._space(host))) - self._services[host])

    def everywhere(self) -> dict[str, list[str]]:
        """Return the command lines of the processes of each host that has some."""
        found = {name: [command_line(pid) for pid in self.pids(name)] for name in self.names}
        return {name: lines for name, lines in found.items() if lines}

    def wait_until_idle(self, seconds: float, *, sessions: bool = False) -> None:
        """Wait until nothing runs on any host; an assertion names what still does after `seconds`.

        `sessions`: what sshd runs for its sessions may stay.
        """

        def is_idle() -> bool:
            lines = [command_line(pid) for name in self.names for pid in self.pids(name)]
            return all(sessions and line.startswith("sshd: ") for line in lines)

        try:
            wait_until(is_idle, "", seconds=seconds)
        except AssertionError:
            raise AssertionError(f"after {seconds} s there is still {self.everywhere()}") from None

    def keep(self) -> None:
        """Let what runs now count as services of the hosts."""
        for name in self.names:
            self._services[name].update(_pids(self._space(name)))

    def kill(self, host: str, *, services: bool = False) -> None:
        """End everything on a host by SIGKILL; its sshd stays, other services where `services` is False."""
        spared = {self._sshd[host].pid} if services else self._services[host]
        # Stopped first: whoever sees another one die must not get to say so.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in set(_pids(self._space(host))) - spared:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def cut(self, host: str) -> None:
        """Cut a host off from the others."""
        _ip("-n", f"{self.prefix}sw", "link", "set", self._port(host), "down")

    def mend(self, host: str) -> None:
        """Undo `cut`."""
        _ip("-n", f"{self.prefix}sw", "link", "set", self._port(host), "up")

    def set_hosts_file(self, host: str, text: str | None = None) -> None:
        """Change a host's /etc/hosts, also for what runs there; None: one that names all hosts."""
        known = [f"{self.address(name)} {name}\n" for name in self.names]
        # In place: what already runs has this very file, not whichever has the name.
        (_ETC / self._space(host) / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(known) if text is None else text
        )

    def set_variables(self, host: str, variables: Mapping[str, str]) -> None:
        """Set what sessions of ssh find in their environment beside TMPDIR, all of it."""
        self._variables[host] = dict(variables)
        self._configure_sshd(host)
        self._sshd[host].send_signal(signal.SIGHUP)  # it starts itself anew, with the same number
        self._wait_for_sshd(host)

    @contextlib.contextmanager
    def more_variables(self, variables: Mapping[str, str]) -> Iterator[None]:
        """Let sessions of ssh find further variables, on all hosts."""
        former = {host: self._variables[host] for host in self.names}
        try:
            for host in self.names:
                self.set_variables(host, {**former[host], **variables})
            yield
        finally:
            for host in self.names:
                self.set_variables(host, former[host])

    @contextlib.contextmanager
    def mounted(self, host: str, source: Path, target: Path) -> Iterator[None]:
        """Let sessions of ssh on a host find `source` in the place of `target`; both are files, or both folders."""
        enter = ["nsenter", f"--target={self._sshd[host].pid}", "--mount"]
        subprocess.run([*enter, "mount", "--bind", source, target], check=True)
        try:
            yield
        finally:
            subprocess.run([*enter, "umount", "--lazy", target], check=True)

    def _take_number(self) -> str:
        """Lock one of the sets of names, and remove what is left of it; return what its names begin with."""
        for number in range(_BEDS):
            # The file stays behind: a lock on a removed file would be no lock.
            self._lock = open(Path(tempfile.gettempdir()) / f"scaling-hosts-{number}.lock", "a")  # noqa: SIM115
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                continue
            _remove(f"scaling{number}-")
            return f"scaling{number}-"
        raise RuntimeError(f"{_BEDS} sets of hosts stand on this machine already")

    def _make(self) -> None:
        self.tmp.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        _make_key(self.folder / "user")
        shutil.copy(self.folder / "user.pub", self.folder / "authorized_keys")
        switch = f"{self.prefix}sw"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for name in self.names:
            self._make_host(name, switch)
        known = self.folder / "known_hosts"
        known.write_text("".join(self._known_host(name) for name in self.names))
        options = {
            "User": "root",
            "IdentityFile": self.folder / "user",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": known,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
        }
        self.ssh_config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        for name in self.names:
            self._wait_for_sshd(name)
        self.keep()

    def _make_host(self, name: str, switch: str) -> None:
        space = self._space(name)
        (_ETC / space).mkdir(parents=True)
        self.set_hosts_file(name)
        (_ETC / space / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        _ip("netns", "add", space)
        port = self._port(name)
        _ip("link", "add", port, "netns", switch, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _make_key(self.folder / f"{name}.key")
        self._configure_sshd(name)
        sshd = [shutil.which("sshd", path=_PATH), "-D", "-f", self.folder / f"{name}.conf"]
        # Not the environment of the tests: a login gets none of it either.
        process = self.popen(
            name, [*sshd, "-E", self.folder / f"{name}.log"], env={"PATH": _PATH}, stdin=subprocess.DEVNULL
        )
        self._started.remove(process)
        self._sshd[name] = process

    def _configure_sshd(self, name: str) -> None:
        variables = {"TMPDIR": str(self.tmp), **self._variables[name]}
        options = {
            "HostKey": self.folder / f"{name}.key",
            "PidFile": self.folder / f"{name}.pid",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "UseDNS": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "SetEnv": " ".join(f'"{key}={value}"' for key, value in variables.items()),
        }
        text = "".join(f"{option} {value}\n" for option, value in options.items())
        (self.folder / f"{name}.conf").write_text(text)

    def _wait_for_sshd(self, name: str) -> None:
        def answers() -> bool:
            assert self._sshd[name].poll() is None, (self.folder / f"{name}.log").read_text()
            reached = ["ssh", "-F", self.ssh_config, "-o", "ConnectTimeout=2", name, "true"]
            return self.run(name, reached, check=False).returncode == 0

        wait_until(answers, f"the sshd of {name} does not answer", seconds=30)

    def _known_host(self, name: str) -> str:
        key = " ".join((self.folder / f"{name}.key.pub").read_text().split()[:2])
        return f"{name},{self.address(name)} {key}\n"

    def _space(self, host: str) -> str:
        assert host in self.names, f"{host} is none of {self.names}"
        return f"{self.prefix}{host}"

    def _port(self, host: str) -> str:
        return f"v{self.names.index(host)}"


def command_line(pid: int) -> str:
    """Return the command line of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _pids(space: str) -> list[int]:
    """Return the living processes in a network namespace; a zombie is in none."""
    try:
        wanted = (_NETNS / space).stat()
    except FileNotFoundError:
        return []
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = (folder / "ns" / "net").stat()
            if (here.st_dev, here.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(folder.name))
    return found


def _remove(prefix: str) -> None:
    """Remove the namespaces whose names begin with `prefix`, and all that runs in them."""
    if not prefix:
        return
    spaces = [path.name for path in _NETNS.glob(f"{prefix}*")] if _NETNS.exists() else []
    for space in spaces:

        def is_empty(space: str = space) -> bool:
            living = _pids(space)
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not living

        wait_until(is_empty, f"processes of {space} cannot be killed", seconds=30)
        _ip("netns", "del", space)
    for folder in _ETC.glob(f"{prefix}*") if _ETC.exists() else ():
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        _ETC.rmdir()


def _make_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
