"""Run a function as every rank of a world, in worker processes started once per session and used again and again.

A fork server imports torch and this library once; a worker is forked from it in milliseconds. Workers know nothing of
each other: the function under test makes its process groups from the environment, as it does under torchrun.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import itertools
import math
import multiprocessing
import os
import pickle
import re
import secrets
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest import mock

from tests.worker import READY, STACK_SIGNAL, Reply, Task, serve

T = TypeVar("T")

MAX_WORLD_SIZE = 8

LAUNCHER_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
)
"""What launchers set."""

GRACE = 1.0
"""Seconds the other ranks have to report too, once one has failed; then they are ended."""

LOST = re.compile(
    r"Connection (closed|reset|refused|was likely closed)|Broken pipe|got 0 bytes|does not answer|lost the"
)
"""What ranks say whose peer is gone. It is the peer that failed, however long it takes to say so."""


class WorldError(Exception):
    """Ranks failed. The message has every rank's traceback, or how it ended."""


@dataclass(frozen=True)
class Outcome:
    """What became of one rank."""

    value: Any = None
    """What the function returned."""
    error: BaseException | None = None
    """What it raised, where that could be brought here."""
    exit_code: int | None = None
    """How the process ended, where it did; -9 is SIGKILL."""
    report: str = ""
    """Traceback, exit code or stacks; empty where the rank succeeded."""
    time: float = 0.0
    """When (`time.monotonic`) it finished, failed, died or was ended."""

    @property
    def is_consequence(self) -> bool:
        """Return whether the rank failed because another one was gone."""
        return self.error is not None and LOST.search(str(self.error)) is not None


def run_distributed(
    function: Callable[..., T],
    world_size: int,
    *args: Any,
    timeout: float = 120,
    environment: Mapping[str, str] | None = None,
) -> list[T]:
    """Call `function(rank, world_size, *args)` as each rank of a world of its own, and return the results by rank.

    The function has to be a module's own (no lambda, no nested function); arguments and results are pickled. Each rank
    sees the environment, working directory and warning filters of the caller, and RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR, MASTER_PORT and `environment`. It has one thread, seeds of 0, and no process group yet.

    The first exception of any rank is raised here, caused by a `WorldError` that shows all ranks. A rank that dies, or
    a world that is not done after `timeout` seconds (stacks are shown), is a `WorldError` itself.
    """
    outcomes = run_world(function, world_size, *args, timeout=timeout, environment=environment)
    failed = [outcome for outcome in outcomes if outcome.report]
    if failed:
        # A dead process is the cause of the errors that its peers report, whenever they come.
        first = min(failed, key=lambda outcome: (outcome.exit_code is None, outcome.is_consequence, outcome.time))
        reports = (
            f"rank {rank} of {world_size} {outcome.report}" for rank, outcome in enumerate(outcomes) if outcome.report
        )
        cause = WorldError("\n".join([f"{function.__qualname__} failed:", *reports]))
        if first.error is None or isinstance(first.error, (SystemExit, KeyboardInterrupt)):
            raise cause
        raise first.error from cause
    return [outcome.value for outcome in outcomes]


def run_world(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 120,
    environment: Mapping[str, str] | None = None,
    grace: float = GRACE,
) -> list[Outcome]:
    """Do as `run_distributed` does, but return what became of each rank: for tests in which ranks are meant to fail."""
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise ValueError(f"a world has 1 to {MAX_WORLD_SIZE} ranks, not {world_size}")
    task = _task(function, args, timeout, {**os.environ, **_rendezvous(world_size), **(environment or {})})
    pool = _pool()
    workers = pool.take(world_size)
    outcomes: list[Outcome] = []
    try:
        for rank, worker in enumerate(workers):
            ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ROLE_RANK": str(rank)}
            worker.connection.send(replace(task, environment={**task.environment, **ranked}))
        outcomes = _collect(workers, timeout, grace)
    finally:
        # Peers of a failed rank may wait for it for ever, and none of them is as it was: the whole world is replaced.
        if outcomes and not any(outcome.report for outcome in outcomes):
            pool.idle[:0] = workers
        else:
            for worker in workers:
                worker.end()
    return outcomes


PORTS = range(15000, 30000)
"""Below those that the kernel hands out by itself: nothing takes them between their choice and their use."""


@functools.cache
def _ports() -> Iterator[int]:
    """Yield ports one after the other, from one that differs between sessions: none is used again soon."""
    first = secrets.randbelow(len(PORTS))
    return itertools.cycle([*PORTS[first:], *PORTS[:first]])


def free_port() -> int:
    """Return a port of this machine that nobody listens on, another one each time."""
    for port in _ports():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is always a next port")


def close_workers() -> None:
    """End all workers. The next world starts new ones."""
    if _pool.cache_info().currsize:
        _pool().close()
        _pool.cache_clear()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, directory: str, number: int) -> None:
        self.stack_file = Path(directory, f"worker_{number}.stacks")
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("forkserver")
        # Not a daemon: those may not have children, and a data loader under test starts some.
        self.process = context.Process(target=serve, args=(theirs, str(self.stack_file)), name=f"worker-{number}")
        # Without a main module: a worker would otherwise run the program that pytest was started as.
        with mock.patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):
            self.process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when the worker takes tasks: the first ones wait for the fork server's imports."""
        try:
            ready = self.connection.poll(120) and self.connection.recv_bytes() == READY
        except (EOFError, ConnectionResetError):
            ready = False
        if not ready:
            self.end()
            raise WorldError("a worker did not start; its own words are on stderr. Can tests.preload be imported?")

    def stacks(self) -> str:
        """Return the stacks of all threads, as they are now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, STACK_SIGNAL)
        began = changed = time.monotonic()
        written = ""
        while time.monotonic() - began < 30:  # for a process that is not given a core
            time.sleep(0.05)
            before, written = written, self.stack_file.read_text()
            if " in serve\n" in written:  # outermost in the main thread, which comes last
                return written
            if written != before:
                changed = time.monotonic()
            elif written and time.monotonic() - changed > 1:  # too deep to be shown to its end
                return written
        return written or "(no stack: the process does not react)\n"

    def end(self) -> None:
        """Kill the worker and all that it has started."""
        if self.process.is_alive() and self.process.pid is not None:
            for kill in (os.kill, os.killpg):
                with contextlib.suppress(ProcessLookupError):
                    kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.process.close()
        self.connection.close()


class _Pool:
    """The workers that wait for a world, and the fork server behind them."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="scaling_test_workers_")
        self.idle: list[_Worker] = []
        self.started = 0
        multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preload"])
        # Libraries that start threads when they are imported would take them through the fork, dead.
        surroundings = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
        surroundings["PYTHONPATH"] = os.pathsep.join(sys.path)
        with mock.patch.dict(os.environ, surroundings):
            forkserver.ensure_running()
        # Before multiprocessing's own, which would wait for the workers for ever.
        atexit.register(close_workers)

    def take(self, count: int) -> list[_Worker]:
        """Return `count` live workers, new ones where too few wait."""
        alive = [worker for worker in self.idle if worker.process.is_alive()]
        for worker in self.idle:
            if worker not in alive:
                worker.end()
        taken, self.idle = alive[:count], alive[count:]
        new = [_Worker(self.directory.name, self.started + number) for number in range(count - len(taken))]
        self.started += len(new)
        for worker in new:
            worker.wait_until_ready()
        return taken + new

    def close(self) -> None:
        """End all workers."""
        for worker in self.idle:
            worker.end()
        self.directory.cleanup()


@functools.cache
def _pool() -> _Pool:
    return _Pool()


def _task(function: Callable[..., Any], args: Sequence[Any], timeout: float, environment: dict[str, str]) -> Task:
    """Describe a call so that a process that has never seen the function's module can make it."""
    if not inspect.isfunction(function) or "<" in function.__qualname__ or function.__module__ == "__main__":
        raise ValueError(f"{function!r} cannot run in a worker; it has to be a function of an importable module")
    filters = [
        (action, _pattern(message), category, _pattern(module), line)
        for action, message, category, module, line in _warning_filters()
    ]
    return Task(
        module=function.__module__,
        path=str(sys.modules[function.__module__].__file__),
        name=function.__qualname__,
        arguments=pickle.dumps((args, filters)),
        environment=environment,
        directory=os.getcwd(),
        search_path=list(sys.path),
        give_up_after=math.ceil(timeout) + 30,
    )


def _warning_filters() -> Iterator[tuple[Any, ...]]:
    yield from warnings.filters  # regular expressions or None; typeshed knows them as a bare sequence


def _pattern(rule: re.Pattern[str] | str | None) -> str:
    return rule.pattern if isinstance(rule, re.Pattern) else rule or ""


def _rendezvous(world_size: int) -> dict[str, str]:
    """Return what torchrun would set for all ranks of a world on this machine."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    return {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        # The machine's own name may not resolve; gloo would look it up.
        **({"GLOO_SOCKET_IFNAME": loopback} if loopback else {}),
    }


def _collect(workers: Sequence[_Worker], timeout: float, grace: float) -> list[Outcome]:
    """Wait for every rank: until all have replied, the time is up, or one has failed and the others had their grace."""
    outcomes: dict[int, Outcome] = {}
    now = time.monotonic()
    deadline, why = now + timeout, f"was not done after {timeout:g} s:\n"
    while pending := {rank: worker for rank, worker in enumerate(workers) if rank not in outcomes}:
        handles = [handle for one in pending.values() for handle in (one.connection, one.process.sentinel)]
        ready = wait(handles, timeout=max(0.0, deadline - time.monotonic()))
        for rank, worker in pending.items():
            if worker.connection in ready or worker.process.sentinel in ready:
                outcomes[rank] = _outcome(worker)
                is_cause = outcomes[rank].report and not outcomes[rank].is_consequence
                if is_cause and (earlier := time.monotonic() + grace) < deadline:
                    deadline, why = earlier, "was ended, because another rank had failed:\n"
        if not ready:
            for rank, worker in pending.items():
                outcomes[rank] = Outcome(report=why + worker.stacks(), time=time.monotonic())
    return [outcomes[rank] for rank in range(len(workers))]


def _outcome(worker: _Worker) -> Outcome:
    """Read a worker's reply, or how it died."""
    try:
        reply: Reply = pickle.loads(worker.connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        report = f"died: {name}\n{worker.stack_file.read_text()}"
        return Outcome(exit_code=code, report=report, time=time.monotonic())
    if not reply.traceback:
        assert reply.value is not None
        return Outcome(value=pickle.loads(reply.value), time=reply.time)
    error = None
    if reply.error is not None:
        with contextlib.suppress(Exception):
            error = pickle.loads(reply.error)
    return Outcome(error=error, report=f"raised\n{reply.traceback}", time=reply.time)
