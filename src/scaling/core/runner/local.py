"""Start and watch processes of this machine, and find out how they ended."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from scaling.core.errors import AskedToLeave, ExitStatus
from scaling.core.runner.attempts import tell
from scaling.core.runner.environment import process_defaults, script_variables
from scaling.core.runner.outcome import Outcome, ProcessEnd, outcome
from scaling.core.runner.process import ERROR_FILE_VARIABLE
from scaling.core.runner.report import Report
from scaling.core.runner.supervisor import POLL_SECONDS, Processes, Supervisor
from scaling.core.topology.launch import ATTEMPT_VARIABLE, RUNNER_VARIABLE


@final
@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """A training in processes of this machine."""

    program: Sequence[str]
    """The arguments of Python."""
    processes: int
    gpus: Sequence[int] | None = None
    master_port: int | None = None
    """Port at which the processes of the first attempt meet; later attempts use the next ports. None: any."""
    script: bool = False
    """Whether the program is a script, which may import from the working directory, as a module can."""

    def supervisor(self) -> Supervisor:
        """Return the supervisor of an attempt."""
        return Supervisor()

    def prepare(self, attempt: int) -> None:
        """Do nothing: the supervisor of the previous attempt has left nothing behind."""

    def run(self, attempt: int, supervisor: Supervisor) -> Outcome:
        """Run all processes of an attempt to their end; return how they ended."""
        port = None if self.master_port is None else self.master_port + attempt
        with (
            process_environment(self.processes, gpus=self.gpus, script=self.script),
            environment_variables({ATTEMPT_VARIABLE: str(attempt)}),
        ):
            return _supervised(self.program, supervisor, processes=self.processes, master_port=port)


def run_program(
    module: str, arguments: Sequence[str], *, processes: int, variables: Mapping[str, str] | None = None
) -> int:
    """Run `python -m MODULE ARGUMENTS` in `processes` processes of this machine; return the exit status.

    For programs that have nothing to save: when asked to leave, all processes end at once, and the status is 128 plus
    the number of the signal, as with other programs. The status is 141, without a message, where the reader of the
    output has closed it. Any other failure is reported as `runner_main` reports it. Each process finds `variables` in
    its environment; it must do its work in `run_process`, and leave SIGTERM as it is. Not for a process that a launcher
    has started (`LaunchContext.launched`).
    """
    with (
        process_environment(processes, gpus=None, script=False),
        environment_variables(variables or {}),
        Supervisor(may_save=False) as supervisor,
    ):
        result = _supervised(["-m", module, *arguments], supervisor, processes=processes, master_port=None)
        tell(result, processes=processes)
    if result.status == ExitStatus.PREEMPTED and supervisor.asked is not None:
        return 128 + supervisor.asked
    return result.status


@contextlib.contextmanager
def process_environment(processes: int, *, gpus: Sequence[int] | None, script: bool) -> Iterator[None]:
    """Set variables that the processes inherit; except for the runner's own, only those that the user has not set."""
    values = process_defaults(os.environ, processes, gpus=gpus)
    values[RUNNER_VARIABLE] = str(os.getpid())
    if script:
        values |= script_variables(os.environ)
    with environment_variables(values):
        yield


@contextlib.contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as the block runs."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _supervised(program: Sequence[str], supervisor: Supervisor, *, processes: int, master_port: int | None) -> Outcome:
    """Run Python with the arguments `program` in processes; return the outcome."""
    command = [sys.executable, "-u", *program]
    if processes == 1:
        ends = _run_one(command, supervisor)
    else:
        ends = _run_several(command, supervisor, processes=processes, master_port=master_port)
    return outcome(ends, asked=supervisor.asked, forced=supervisor.forced)


def _run_one(command: Sequence[str], supervisor: Supervisor) -> list[ProcessEnd]:
    """Run `command` in one process of its own, without an agent."""
    with tempfile.TemporaryDirectory(prefix="scaling_run_") as folder:
        error_file = Path(folder) / "error.json"
        environment = os.environ | {ERROR_FILE_VARIABLE: str(error_file)}
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        supervisor.crew = Processes(lambda: {process.pid: process.returncode})
        while process.poll() is None:
            supervisor.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        report = Report.read(error_file)
        said = report.status if report is not None else 0
        return [ProcessEnd(rank=0, exit_code=process.returncode or said, report=report)]


def _run_several(
    command: Sequence[str], supervisor: Supervisor, *, processes: int, master_port: int | None
) -> list[ProcessEnd]:
    """Run `command` in processes of an agent; in none if the run is asked to leave before that."""
    run_processes: Callable[..., list[ProcessEnd]]
    try:
        with supervisor.interruption():
            # Imported here because it imports torch, which takes seconds and which a single process does not need here.
            run_processes = importlib.import_module("scaling.core.runner.elastic").run_processes
    except AskedToLeave:
        return []
    return run_processes(command, supervisor, processes=processes, master_port=master_port)
