"""Start the processes of this machine through torchrun's elastic agent, as a library."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, Std
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from scaling.core.errors import LayoutError, ScalingError
from scaling.core.runner.node_output import NodeOutput
from scaling.core.runner.outcome import ProcessEnd
from scaling.core.runner.report import Report
from scaling.core.runner.supervisor import POLL_SECONDS, Processes, Supervisor
from scaling.core.topology.base_store import LOOPBACK, open_base_store, serve_this_machine
from scaling.core.topology.launch import LaunchContext

_MEETING_SECONDS: Final = 120.0
"""How long the machines of a run may take until all of them have started their agents."""
_LEAVING_SECONDS: Final = 3.0
"""How long an agent that has started nothing may hold up a machine that is asked to leave."""
_BARRIER_SECONDS: Final = 30.0
"""How long an agent whose processes are all done waits for the others, one of which serves the store."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """The position of this machine among those of a run, and where they meet."""

    run_id: str
    index: int
    machines: int
    first_rank: int
    address: str
    port: int


class FixedRendezvous(RendezvousHandler):
    """The rendezvous of agents whose number and order are known beforehand: it is complete once they have a store.

    The first machine serves the store, where the other machines and all processes meet. A single machine serves its
    own.
    """

    def __init__(self, run_id: str, port: int, *, site: Site | None, is_over: Callable[[], bool]) -> None:
        self._run_id = run_id
        self._site = site
        self._is_over = is_over
        self._store = serve_this_machine(port, setting="runner.master_port") if site is None else None
        self._is_closed = False

    @property
    def use_agent_store(self) -> bool:
        """Return True: the processes meet in the agent's store."""
        return True

    def get_backend(self) -> str:
        """Return the name by which torch's events know this rendezvous."""
        return "one-machine"

    def get_run_id(self) -> str:
        """Return the name of the run."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store, the number of this agent and how many there are."""
        if self._store is not None:
            place = RendezvousStoreInfo(LOOPBACK, self._store.port)
            return RendezvousInfo(dist.PrefixStore(self._run_id, self._store), 0, 1, place)
        assert self._site is not None
        store = self._meet(self._site)
        place = RendezvousStoreInfo(self._site.address, self._site.port)
        return RendezvousInfo(dist.PrefixStore(self._run_id, store), self._site.index, self._site.machines, place)

    def _meet(self, site: Site) -> dist.Store:
        launch = LaunchContext(
            rank=site.index, world_size=site.machines, master_addr=site.address, master_port=site.port
        )
        deadline = time.monotonic() + _MEETING_SECONDS
        while True:
            try:
                return open_base_store(launch, min(deadline, time.monotonic() + 2.0))
            except LayoutError as error:
                raise LayoutError(str(error).replace("MASTER_PORT", "runner.master_port")) from error
            except ScalingError:
                if time.monotonic() >= deadline or self._is_over():
                    raise

    def is_closed(self) -> bool:
        """Return whether the run is over."""
        return self._is_closed

    def set_closed(self) -> None:
        """Note that the run is over."""
        self._is_closed = True

    def num_nodes_waiting(self) -> int:
        """Return 0: nobody joins."""
        return 0

    def shutdown(self) -> bool:
        """Note that the run is over."""
        self._is_closed = True
        return True


class PipedOutput(DefaultLogsSpecs):
    """Log specification that lets the processes write into pipes that a `NodeOutput` reads."""

    def __init__(self, folder: str, output: NodeOutput, *, first_rank: int) -> None:
        super().__init__(log_dir=folder, redirects=Std.ALL)
        self._output = output
        self._first_rank = first_rank

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Return where each process writes: pipes in place of the files."""
        destination = super().reify(envs)
        for to, paths in ((1, destination.stdouts), (2, destination.stderrs)):
            for local_rank, path in paths.items():
                self._output.attach(path, rank=self._first_rank + local_rank, to=to)
        return destination


def run_processes(
    command: Sequence[str],
    supervisor: Supervisor,
    *,
    processes: int,
    master_port: int | None,
    site: Site | None = None,
    output: NodeOutput | None = None,
) -> list[ProcessEnd]:
    """Run `command` in `processes` processes, watched by `supervisor`, until all have ended; return how they ended.

    These are all processes of the run or, with a `site`, those of one machine of several. Their output goes to this
    process's own output, or through `output`. The list is empty where the run is asked to leave before anything was
    started.

    The agent runs in a thread, so that the main thread can handle signals: the agent itself would answer the first
    signal with a deadline of 30 seconds, however long saving takes, and report any end as a failure.
    """
    run_id = f"scaling-{uuid.uuid4()}" if site is None else site.run_id
    first_rank = 0 if site is None else site.first_rank
    rendezvous = FixedRendezvous(
        run_id, master_port or 0, site=site, is_over=lambda: supervisor.asked is not None or supervisor.forced
    )
    with tempfile.TemporaryDirectory(prefix="scaling_run_") as folder, _quiet_agent():
        agent = LocalElasticAgent(
            WorkerSpec(
                role="train",
                local_world_size=processes,
                rdzv_handler=rendezvous,
                entrypoint=command[0],
                args=tuple(command[1:]),
                max_restarts=0,
                monitor_interval=POLL_SECONDS,
                local_addr=LOOPBACK,
            ),
            logs_specs=DefaultLogsSpecs(log_dir=folder)
            if output is None
            else PipedOutput(folder, output, first_rank=first_rank),
            exit_barrier_timeout=_BARRIER_SECONDS,
        )
        results: list[RunResult] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(agent.run())
            except Exception as error:
                errors.append(error)

        def started() -> dict[int, int | None]:
            # The agent does not show the state of its processes, and waits 30 seconds for those that outlive a failure.
            context = agent._pcontext
            handlers = context.subprocess_handlers.values() if isinstance(context, SubprocessContext) else ()
            return {handler.proc.pid: handler.proc.returncode for handler in handlers}

        thread = threading.Thread(target=run, name="scaling-agent", daemon=True)
        supervisor.crew = Processes(started)
        thread.start()
        idle = 0.0
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            supervisor.check()
            if site is not None and (supervisor.asked is not None or supervisor.forced) and not started():
                idle += POLL_SECONDS
                if idle > _LEAVING_SECONDS or supervisor.forced:  # the agent waits for machines that do not come
                    return []
        rendezvous.shutdown()
        final = started()
        supervisor.crew = Processes(lambda: final)  # else the crew would keep the agent, and the agent the port
        if not results:
            if supervisor.asked is not None and not started():
                return []
            if isinstance(errors[0], ScalingError):
                raise errors[0]
            raise ScalingError(f"the {processes} processes could not be started: {errors}") from errors[0]
        ranks = range(first_rank, first_rank + processes)
        return [_end(rank, rank - first_rank, results[0], supervisor, Path(folder)) for rank in ranks]


def _end(rank: int, local_rank: int, result: RunResult, supervisor: Supervisor, folder: Path) -> ProcessEnd:
    report = next((Report.read(path) for path in folder.glob(f"*/attempt_0/{local_rank}/error.json")), None)
    failure = result.failures.get(rank)
    if failure is None:  # it ended with 0, but may have reported that it was asked to leave
        return ProcessEnd(rank=rank, exit_code=0 if report is None else report.status, report=report)
    return ProcessEnd(
        rank=rank,
        exit_code=failure.exitcode,
        report=report,
        time=supervisor.ended.get(failure.pid, float("inf")),
        stopped=failure.pid in supervisor.killed,
    )


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep the agent's own messages off the terminal: they come before, and instead of, the first cause."""
    logger = logging.getLogger("torch.distributed.elastic")
    handler = logging.NullHandler()
    former = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = former
        logger.removeHandler(handler)
