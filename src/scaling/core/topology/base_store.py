"""The store where processes first meet: served by torchrun's agent or by rank 0, reached by everyone else."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from scaling.core.errors import LayoutError, ScalingError
from scaling.core.topology.launch import LaunchContext

LOOPBACK = "127.0.0.1"
_ANSWER_SECONDS = 30.0
"""How long a port that accepts connections may take to answer as a store; TCPStore itself would wait for ever."""


def open_base_store(launch: LaunchContext, deadline: float) -> dist.Store:
    """Return the store at the launch's meeting place, which this process serves if that is its task.

    `deadline` is a time of `time.monotonic`. Raises `LayoutError` where the port is taken or something other than a
    store answers, `ScalingError` where nothing listens there in time.
    """
    if launch.rank == 0 and not launch.agent_store:
        return _serve(launch, deadline)
    return _reach(launch, deadline)


def poll_until(deadline: float) -> Iterator[None]:
    """Yield at once, and then again at growing intervals, until `deadline` (of `time.monotonic`) passes.

    Time in which the process is stopped, as on a computer that sleeps, does not count.
    """
    yield
    pause = 0.002
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        deadline += max(0.0, left - (deadline - time.monotonic()) - pause - 1.0)
        pause = min(0.1, pause * 1.3)
        yield


def _serve(launch: LaunchContext, deadline: float) -> dist.Store:
    host, port = launch.meeting_place
    try:
        return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=_left(deadline))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise port_in_use(port, setting="MASTER_PORT") from error
        raise LayoutError(
            f"rank 0 cannot listen on {host}:{port} ({error}); set MASTER_PORT to another port"
        ) from error


def serve_this_machine(port: int, *, setting: str) -> dist.TCPStore:
    """Serve a store that only this machine can reach, since any process that reaches it can write to it.

    `port` 0 chooses a free one; `setting` is the setting by which the user chooses the port.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise port_in_use(port, setting=setting) from error
            raise LayoutError(f"cannot listen on port {port} ({error}); set {setting} to another port") from error
        chosen = listener.getsockname()[1]
        return dist.TCPStore(
            LOOPBACK, chosen, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def port_in_use(port: int, *, setting: str) -> LayoutError:
    """Return the error for a port that another program listens on. `setting` is where the user chooses it."""
    return LayoutError(
        f"port {port} on {socket.gethostname()} is in use, so the processes cannot meet there; set {setting} to a free "
        "port, or end the program that holds it"
    )


def _reach(launch: LaunchContext, deadline: float) -> dist.Store:
    host, port = launch.meeting_place
    problem = "no answer"
    for _ in poll_until(deadline):
        # Try a plain socket first: TCPStore prints a call stack for every refusal and blocks signal handlers meanwhile.
        try:
            socket.create_connection((host, port), timeout=_left(deadline, most=2.0).total_seconds()).close()
            break
        except OSError as error:
            problem = str(error)
    else:
        raise ScalingError(
            f"rank {launch.rank} found nobody at {host}:{port} ({problem}): rank 0 did not start, or MASTER_ADDR and "
            "MASTER_PORT do not name its machine and port, or a firewall stands between"
        )
    stores: list[dist.Store] = []
    errors: list[Exception] = []

    def connect() -> None:
        limit = timedelta(seconds=max(1.0, _ANSWER_SECONDS))
        try:
            stores.append(dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit))
        except dist.DistNetworkError as error:
            errors.append(error)

    thread = threading.Thread(target=connect, name="scaling-rendezvous", daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if stores:
        return stores[0]
    if errors:
        raise ScalingError(f"rank {launch.rank} lost rank 0 at {host}:{port} as they met: {errors[0]}")
    raise LayoutError(
        f"what listens at {host}:{port} does not answer rank {launch.rank} as a store does: another program holds the "
        "port; set MASTER_PORT to a free port for all processes"
    )


def _left(deadline: float, *, most: float = float(24 * 3600)) -> timedelta:
    """Return the time until `deadline`, between a second and `most` seconds."""
    return timedelta(seconds=min(most, max(1.0, deadline - time.monotonic())))
