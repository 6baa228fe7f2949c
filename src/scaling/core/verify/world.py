"""The processes of one layout on this machine, and calls to all of them at once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import time
import traceback
import uuid
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, final

import torch
from typing_extensions import Self

from scaling.core.errors import ConfigError, ScalingError
from scaling.core.topology.base_store import LOOPBACK, serve_this_machine
from scaling.core.topology.config import Device, TopologyConfig
from scaling.core.topology.launch import LaunchContext
from scaling.core.topology.topology import Topology
from scaling.core.training.recipe import Recipe
from scaling.core.verify.session import Session


@dataclass(frozen=True)
class _Answer:
    """The answer of one process to a call."""

    value: Any = None
    error: bytes | None = None
    """The pickled exception, where it is an error of this library."""
    traceback: str = ""
    """Empty where the call succeeded."""


class _ProcessEnded(ScalingError):
    """A process ended instead of answering."""


@final
class LocalWorld:
    """A `Session` in each of the processes of a layout, on the CPUs of this machine. Use it as a context manager.

    Processes come from multiprocessing's fork server, which imports PyTorch once for all of them. They end with the
    context, or when the process that made them ends, for whatever reason.
    """

    def __init__(self, recipe: Recipe, config: TopologyConfig, *, name: str, timeout: float) -> None:
        self._name = name
        self._timeout = timeout
        config = config.model_copy(update={"device": Device.CPU, "process_group_timeout_seconds": timeout})
        # Served from here, on a free port: no port has to be chosen, and no other program can take it meanwhile.
        self._store = serve_this_machine(0, setting="MASTER_PORT")
        context = _context()
        self._processes = []
        self._connections: list[Connection] = []
        try:
            job = uuid.uuid4().hex
            for rank in range(config.world_size):
                launch = LaunchContext(
                    rank=rank,
                    world_size=config.world_size,
                    local_rank=rank,
                    master_addr=LOOPBACK,
                    master_port=self._store.port,
                    agent_store=True,
                    job_id=job,
                    launched=True,
                )
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, recipe, config, launch), daemon=True)  # type: ignore[attr-defined]  # typeshed's BaseContext lacks it
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise ConfigError(
                f"what is to be trained cannot be sent to other processes: {error}; make its layers and loss "
                "functions of a module, or functools.partial of them, and define the class of the data set in a module"
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, method: str, *arguments: Any) -> None:
        """Call a method of `Session` in every process, without waiting."""
        for connection in self._connections:
            with suppress(OSError):  # a process that has ended is reported by `finish`
                connection.send((method, arguments))

    def finish(self) -> list[Any]:
        """Wait for the last call and return its results, by rank.

        An error of this library in any process is raised here; any other error, a process that has ended and a process
        that does not answer in time raise a `ScalingError` that names the rank.
        """
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout
        while missing := {self._connections[r]: r for r in range(len(self._connections)) if r not in answers}:
            ready = wait(list(missing), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                ranks = ", ".join(str(rank) for rank in missing.values())
                raise ScalingError(
                    f"{self._name}: no answer from rank {ranks} within {self._timeout:g} s; the ranks wait for each "
                    "other (a layer that communicates on some of them only), or the model is too large for this machine"
                )
            errors: list[ScalingError] = []
            for connection in ready:
                assert isinstance(connection, Connection)
                try:
                    answers[missing[connection]] = self._receive(connection, missing[connection])
                except ScalingError as error:
                    errors.append(error)
            if errors:  # when a process ends, others fail because of it
                raise min(errors, key=lambda error: not isinstance(error, _ProcessEnded))
        return [answers[rank] for rank in range(len(self._connections))]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `Session` in every process and return the results, by rank."""
        self.start(method, *arguments)
        return self.finish()

    def close(self) -> None:
        """End all processes. Safe to call twice."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()  # there is nothing for them to save
            process.join()
            process.close()
        self._connections.clear()
        self._processes.clear()

    def _receive(self, connection: Connection, rank: int) -> Any:
        try:
            answer: _Answer = connection.recv()
        except (EOFError, ConnectionResetError):
            process = self._processes[rank]
            process.join()
            raise _ProcessEnded(
                f"{self._name}: the process of rank {rank} ended with status {process.exitcode}; its own words are "
                "above. Status -9 usually means too little memory"
            ) from None
        if not answer.traceback:
            return answer.value
        if answer.error is not None:
            error: ScalingError = pickle.loads(answer.error)
            raise error
        raise ScalingError(f"{self._name}: rank {rank} failed:\n{answer.traceback}")


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo too, because every optimizer imports it when created: otherwise two seconds per process.
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    return context


def _serve(connection: Connection, recipe: Recipe, config: TopologyConfig, launch: LaunchContext) -> None:
    """Act as one rank: make a session, then answer calls until the other end closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, who ends the world
    torch.set_num_threads(1)  # all ranks share this machine, and sums have one order
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback  # the machine's own name may not resolve; gloo would look it up
    session: Session | None = None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, arguments = connection.recv()
            try:
                if session is None:
                    session = Session(recipe, config, Topology.connect(config, launch))
                answer = _Answer(getattr(session, method)(*arguments))
            except Exception as error:
                answer = _Answer(error=_pickled(error), traceback=traceback.format_exc())
            connection.send(answer)


def _pickled(error: Exception) -> bytes | None:
    """Return an error of this library as bytes; None for other errors, and where it cannot be pickled and unpickled."""
    if not isinstance(error, ScalingError):
        return None
    with suppress(Exception):
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    return None
