"""Slurm: a throw-away cluster of Slurm across network namespaces that stand for hosts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

START_SECONDS: Final = 30.0
NODE_TIMEOUT_SECONDS: Final = 8
"""After which Slurm takes a host that does not answer for lost."""

_CONFIGURATION: Final = """\
ClusterName=test
SlurmctldHost={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout={timeout}
NodeName={hosts} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

_INSIDE: Final = """\
hostname "$0"
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
shift
exec "$@"
"""
"""Like `ip netns exec`, which mounts a /sys without the cgroups that slurmd looks for."""


class Slurm:
    """A cluster whose machines are the namespaces `hosts`: names that resolve in each of them, by /etc/netns/NAME.

    `prefix` is what the names of the namespaces have before those of the hosts.

    Needs root, and Debian's slurm-wlm and munge. Its files, sockets and logs are in `folder`, a short path (a socket's
    has 108 characters at most). slurmctld runs in the first host. Two jobs of four tasks fit at a time.
    """

    def __init__(self, hosts: Sequence[str], folder: Path, *, prefix: str = "") -> None:
        self.hosts = tuple(hosts)
        self.folder = folder
        self.prefix = prefix

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that Slurm's commands need, in any of the hosts."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons and wait until every host is idle."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        for name in ("state", *(f"spool.{host}" for host in self.hosts)):
            (self.folder / name).mkdir(exist_ok=True)
        hosts = ",".join(self.hosts)
        text = _CONFIGURATION.format(first=self.hosts[0], folder=self.folder, hosts=hosts, timeout=NODE_TIMEOUT_SECONDS)
        (self.folder / "slurm.conf").write_text(text)
        self._start_munge()
        self._start("slurmctld", self.hosts[0], ["slurmctld", "-f", self.environment["SLURM_CONF"]])
        for host in self.hosts:
            self.start_host(host)
        self.wait_for_hosts()

    def start_host(self, host: str) -> None:
        """Start slurmd on a host, as after the host was lost."""
        self._start(f"slurmd.{host}", host, ["slurmd", "-N", host, "-f", self.environment["SLURM_CONF"]])

    def wait_for_hosts(self) -> None:
        """Wait until every host is idle, so that a job of all of them starts at once."""
        _wait(
            lambda: self.run("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(self.hosts),
            "the hosts to be idle",
        )

    def run(self, *command: str, host: str | None = None) -> str:
        """Run a command of Slurm in a host (the first one unless given); return what it prints, also where it fails."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.prefix + (host or self.hosts[0]), *command],
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def job_state(self, job: str) -> str:
        """Return the state of a job in Slurm's word, such as RUNNING; empty where Slurm no longer knows it."""
        text = self.run("scontrol", "--oneliner", "show", "job", job)
        return next((word.partition("=")[2] for word in text.split() if word.startswith("JobState=")), "")

    def only_job(self) -> str:
        """Return the number of the job that waits or runs, of which there must be one."""
        (job,) = self.run("squeue", "--noheader", "--format=%i").split()
        return job

    def said(self, folder: Path) -> str:
        """Return what jobs have written into files of their output below a folder."""
        return "\n".join(path.read_text() for path in sorted(folder.rglob("*.out")))

    def wait_for_state(self, job: str, *states: str, seconds: float = 120.0) -> str:
        """Wait until a job is in one of these states, and return which."""
        _wait(lambda: self.job_state(job) in states, f"job {job} to be {' or '.join(states)}", seconds)
        return self.job_state(job)

    def stop(self) -> None:
        """End all daemons and what their jobs have left."""
        for file in sorted(self.folder.glob("*.pid"), key=lambda path: path.name == "munged.pid"):
            _end(file)
        for host in self.hosts:
            for pid in subprocess.run(
                ["ip", "netns", "pids", self.prefix + host], stdout=subprocess.PIPE, text=True, check=False
            ).stdout.split():
                if b"slurmstepd" in _command_line(int(pid)):
                    _kill(int(pid))

    def _start_munge(self) -> None:
        """Start a munged of our own, so that one of the machine's is neither needed nor disturbed."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        subprocess.run(["munged", "--force", *options], check=True, capture_output=True)

    def _start(self, name: str, host: str, command: Sequence[str]) -> None:
        (self.folder / f"{name}.pid").unlink(missing_ok=True)
        space = self.prefix + host
        inside = ["unshare", "--uts", "--mount", "sh", "-ec", _INSIDE, host, f"/etc/netns/{space}", *command]
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{space}", *inside],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        _wait((self.folder / f"{name}.pid").exists, f"{name} to start")


def _end(file: Path) -> None:
    """End the daemon that this file names, and wait until it has ended."""
    try:
        pid = int(file.read_text())
    except (FileNotFoundError, ValueError):
        return
    _kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5.0
    while _command_line(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill(pid)


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wait(is_so: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
