"""Start the processes of this machine through torchrun's elastic agent, as a library."""

from __future__ import annotations

import logging
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from scaling.core.errors import ScalingError
from scaling.core.runner.outcome import ProcessEnd
from scaling.core.runner.report import Report
from scaling.core.runner.supervisor import POLL_SECONDS, Processes, Supervisor
from scaling.core.topology.base_store import LOOPBACK, serve_this_machine


class OneMachine(RendezvousHandler):
    """The rendezvous of an agent that has no other agents to wait for: it is complete as it begins."""

    def __init__(self, run_id: str, port: int) -> None:
        self._run_id = run_id
        self._store = serve_this_machine(port, setting="runner.master_port")
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
        """Return the store, and that this agent is the only one."""
        return RendezvousInfo(
            dist.PrefixStore(self._run_id, self._store), 0, 1, RendezvousStoreInfo(LOOPBACK, self._store.port)
        )

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


def run_processes(
    command: Sequence[str], supervisor: Supervisor, *, processes: int, master_port: int | None
) -> list[ProcessEnd]:
    """Run `command` in as many processes, watched by `supervisor`, until all have ended; return how.

    The agent works in a thread, so that the main thread is there for signals: the agent itself would answer the first
    one by a deadline of 30 seconds, however long saving takes, and report whatever happens as a failure.
    """
    run_id = f"scaling-{uuid.uuid4()}"
    rendezvous = OneMachine(run_id, master_port or 0)
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
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        results: list[RunResult] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(agent.run())
            except Exception as error:
                errors.append(error)

        def started() -> dict[int, int | None]:
            # The agent shows nobody how its processes fare, and waits 30 seconds for those that outlive a failure.
            context = agent._pcontext
            handlers = context.subprocess_handlers.values() if isinstance(context, SubprocessContext) else ()
            return {handler.proc.pid: handler.proc.returncode for handler in handlers}

        thread = threading.Thread(target=run, name="scaling-agent", daemon=True)
        supervisor.crew = Processes(started)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            supervisor.check()
        rendezvous.shutdown()
        if not results:
            raise ScalingError(f"the {processes} processes could not be started: {errors}") from errors[0]
        return [_end(rank, results[0], supervisor, Path(folder)) for rank in range(processes)]


def _end(rank: int, result: RunResult, supervisor: Supervisor, folder: Path) -> ProcessEnd:
    report = next((Report.read(path) for path in folder.glob(f"*/attempt_0/{rank}/error.json")), None)
    failure = result.failures.get(rank)
    if failure is None:  # it ended with 0, but may have left word that it was asked to leave
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
    """Keep the agent's own words from the terminal: they come before, and instead of, what went wrong."""
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
