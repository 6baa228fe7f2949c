"""The facts about a machine that matter to a run, found with the standard library alone.

They are found in well under a second, unless its name servers or the driver of its GPUs do not answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from scaling.core.runner.plan import LaunchPlan

TOKEN_FILE: Final = ".scaling_look_{run_id}"
"""File that the runner leaves in a folder, and that other machines find there if theirs is the same folder."""

_MARK: Final = "scaling_host_facts"
_WHOLE_BYTES: Final = 16 << 20
_SAMPLES, _SAMPLE_BYTES, _EDGE_BYTES = 64, 4096, 1 << 16
_ADDRESS_OF_INTERFACE: Final = 0x8915  # SIOCGIFADDR
_GPU_SECONDS: Final = 3.0
_NAME_SECONDS: Final = 6.0  # a resolver asks its first server for 5 s before it asks the second


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The facts that one machine reports about itself."""

    index: int
    """Its number in the plan."""
    hostname: str = ""
    identity: str = ""
    """The same for two names of one machine. Parts of a machine with a network of their own count as machines."""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """Python, scaling and torch; None for what is not installed."""
    source: str = ""
    """Digest of the library's source, which may differ within one version during development."""
    files: Mapping[str, str | None] = field(default_factory=dict)
    """Digest of each file; None where it cannot be read."""
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    """The content of the runner's token file in each folder; None where the file is missing."""
    unwritable: tuple[str, ...] = ()
    """Folders that cannot be written to."""
    gpus: tuple[int, ...] = ()
    """Numbers of its GPUs."""
    port_problem: str | None = None
    """Why the port of the meeting place is not available, on the machine that would serve it."""
    time: float = 0.0
    """Seconds since the epoch, by its clock."""
    own_address: str | None = None
    """The address that its own name resolves to; None: none."""
    master_address: str | None = None
    """The address that the name of the meeting place resolves to; None: none."""
    interface: str | None = None
    """The interface over which this machine reaches the first one; on the first machine, the second one."""

    def to_line(self, run_id: str) -> str:
        """Return the facts as a line of JSON."""
        return json.dumps({_MARK: asdict(self), "run_id": run_id})

    @classmethod
    def from_line(cls, line: str, *, run_id: str) -> HostFacts | None:
        """Return the facts in a line of this run; None where it is something else."""
        if _MARK not in line:
            return None
        try:
            said = json.loads(line)
            values: dict[str, Any] = said[_MARK]
            tuples = {name: tuple(values[name]) for name in ("unwritable", "gpus")}
            return cls(**{**values, **tuples}) if said["run_id"] == run_id else None
        except (ValueError, KeyError, TypeError):
            return None


def look(plan: LaunchPlan, index: int, *, port: int | None = None) -> HostFacts:
    """Return the facts of this machine, which is number `index` of the plan.

    `port` is that of the meeting place (None: of the first attempt), which the first machine serves.
    """
    port = plan.port(0) if port is None else port
    hostname = socket.gethostname()
    others = [host.name.rpartition("@")[2] for host in plan.hosts]
    peer = plan.master_addr if index else (others[1] if len(others) > 1 else None)
    addresses = _addresses({hostname, plan.master_addr} | ({peer} if peer else set()))
    way = None if peer is None else addresses[peer]
    folders = {path for _, path in plan.needs.folders}
    return HostFacts(
        index=index,
        hostname=hostname,
        identity=identity(),
        versions=versions(),
        source=source_digest(),
        files={path: sampled_digest(path) for path in plan.needs.files},
        tokens={path: _token(path, plan.run_id) for path in folders},
        unwritable=tuple(sorted(path for path in folders if Path(path).is_dir() and not os.access(path, os.W_OK))),
        gpus=tuple(gpu_numbers()),
        port_problem=None if index else _port_problem(port),
        time=time.time(),
        own_address=addresses[hostname],
        master_address=addresses[plan.master_addr],
        interface=None if way is None else interface_to(way),
    )


def versions() -> dict[str, str | None]:
    """Return the versions of the software that must be the same on all machines."""
    found: dict[str, str | None] = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("scaling", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def source_digest(package: Path | None = None) -> str:
    """Return a digest of all source files of this library, or of another package, by their names and contents."""
    package = Path(__file__).parents[2] if package is None else package
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def sampled_digest(path: Path | str) -> str | None:
    """Return a digest of a file: of all of it up to 16 MiB, else of its size, both ends and 63 samples between.

    So terabytes cost as little as megabytes; a difference between two files of one size that lies between the samples
    goes unnoticed.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            if size <= _WHOLE_BYTES:
                digest.update(file.read())
            else:
                pieces = [(0, _EDGE_BYTES), (size - _EDGE_BYTES, _EDGE_BYTES)]
                pieces += [(number * size // _SAMPLES, _SAMPLE_BYTES) for number in range(1, _SAMPLES)]
                for start, count in pieces:
                    file.seek(start)
                    digest.update(file.read(count))
            return digest.hexdigest()
    except OSError:
        return None


def gpu_numbers() -> Sequence[int]:
    """Return the numbers of this machine's GPUs, by the driver's files or its program."""
    listed = Path("/proc/driver/nvidia/gpus")
    if listed.is_dir():
        return range(len(list(listed.iterdir())))
    try:
        said = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_GPU_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return range(sum(line.startswith("GPU ") for line in said.splitlines()))


def interface_to(address: str) -> str | None:
    """Return the name of the interface over which an address is reached, without sending a packet; None: unknown."""
    try:
        family, _, _, _, target = socket.getaddrinfo(
            address, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            own = str(probe.getsockname()[0]).partition("%")[0]
            return _interface_with(own, probe) if family == socket.AF_INET else _interface_with_v6(own)
    except OSError:
        return None


def _interface_with(address: str, probe: socket.socket) -> str | None:
    for _, name in socket.if_nameindex():
        request = struct.pack("256s", name.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), _ADDRESS_OF_INTERFACE, request)
        except OSError:  # it has no address
            continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None


def _interface_with_v6(address: str, table: Path = Path("/proc/net/if_inet6")) -> str | None:
    """Return the name from the kernel's table, whose lines are address, number, prefix, scope, flags and name."""
    digits = socket.inet_pton(socket.AF_INET6, address).hex()
    lines = (line.split() for line in table.read_text(encoding="ascii").splitlines())
    return next((fields[5] for fields in lines if fields[0] == digits), None)


def identity(proc: Path = Path("/proc")) -> str:
    """Return an identity that all names of a machine share; parts with a network of their own have different ones."""
    parts = []
    for path in (proc / "sys/kernel/random/boot_id", Path("/etc/machine-id")):
        try:
            parts.append(path.read_text(encoding="ascii").strip())
            break
        except OSError:
            continue
    try:
        parts.append(str(os.stat(proc / "self/ns/net").st_ino))
    except OSError:
        parts.append(socket.gethostname())
    return "/".join(parts)


def _token(folder: str, run_id: str) -> str | None:
    try:
        return (Path(folder) / TOKEN_FILE.format(run_id=run_id)).read_text(encoding="utf-8")
    except OSError:
        return None


def _port_problem(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _addresses(names: Iterable[str]) -> dict[str, str | None]:
    """Return the addresses that names resolve to, looked up at the same time; None: none, or none in time."""
    found: dict[str, str | None] = dict.fromkeys(names)

    def ask(name: str) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found[name] = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in found]
    deadline = time.monotonic() + _NAME_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)
