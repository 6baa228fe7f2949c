"""runner_main and run_program: start the processes of a run, wait for them, and say how it ended."""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from scaling.core.config.config_file import handed_on
from scaling.core.errors import AskedToLeave, ExitStatus, StorageError
from scaling.core.logging.run_state import RunPhase, RunState
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.environment import process_defaults, script_variables
from scaling.core.runner.hosts import read_hosts
from scaling.core.runner.outcome import Outcome, ProcessEnd, outcome
from scaling.core.runner.process import ERROR_FILE_VARIABLE
from scaling.core.runner.report import Report
from scaling.core.runner.supervisor import POLL_SECONDS, Processes, Supervisor
from scaling.core.storage.lock import locked
from scaling.core.topology.launch import CONFIG_COPY_VARIABLE, RUNNER_VARIABLE, LaunchContext


def runner_main(
    config: RunnerConfig,
    *,
    module_or_script: str,
    config_path: Path | str,
    config_text: str | None = None,
    overrides: Sequence[str] = (),
    processes: int,
    log_dir: Path | None = None,
) -> int:
    """Run `module_or_script CONFIG [KEY=VALUE ...]` in `processes` processes of this machine; return the exit status.

    The processes resolve the configuration themselves, from the same overrides and `config_text`: what was read of
    the file, and checked, before (`read_config` finds it for them). None: they read the file. What a person reads when
    one fails is printed here, once: the first cause, which is also written to `run_state.json` in `log_dir`. Signals
    are passed on; no process is left behind. Inside torchrun or srun nothing is started: the work is done in this
    process.
    """
    target = str(config.script or module_or_script)
    arguments = [str(config_path), *overrides]
    with _config_for_processes(config_path, config_text):
        return _run(config, target, arguments, processes=processes, log_dir=log_dir)


def _run(config: RunnerConfig, target: str, arguments: Sequence[str], *, processes: int, log_dir: Path | None) -> int:
    """Run `target` in this process where a launcher has started it, else in processes."""
    if LaunchContext.from_environment().launched:
        return _run_here(target, arguments)
    program = [target, *arguments] if _is_script(target) else ["-m", target, *arguments]
    named = read_hosts(config.hosts, config.hostsfile, default_slots=config.default_gpu_count)
    gpus = named[0].gpus if named else None
    with _environment(processes, gpus=gpus, script=_is_script(target)), Supervisor() as supervisor:
        result = _supervised(program, supervisor, processes=processes, master_port=config.master_port)
    if log_dir is not None:
        _record(result, log_dir, asked=supervisor.asked)
    return result.status


def run_program(
    module: str, arguments: Sequence[str], *, processes: int, variables: Mapping[str, str] | None = None
) -> int:
    """Run `python -m MODULE ARGUMENTS` in `processes` processes of this machine; return the exit status.

    For what has nothing to save: asked to leave, all processes end at once, and the status is 128 and the number of the
    signal, as that of other programs. 141 where whoever read the output has closed it, without a word. Else a failure
    is told as `runner_main` tells it. Each process finds `variables` in its environment; it ends in `run_process`, and
    leaves SIGTERM as it is. Not for a process that a launcher has started (`LaunchContext.launched`).
    """
    with (
        _environment(processes, gpus=None, script=False),
        _variables(variables or {}),
        Supervisor(may_save=False) as supervisor,
    ):
        result = _supervised(["-m", module, *arguments], supervisor, processes=processes, master_port=None)
    if result.status == ExitStatus.PREEMPTED and supervisor.asked is not None:
        return 128 + supervisor.asked
    return result.status


def _supervised(program: Sequence[str], supervisor: Supervisor, *, processes: int, master_port: int | None) -> Outcome:
    """Run what Python is given in processes, and print how they ended."""
    command = [sys.executable, "-u", *program]
    if processes == 1:
        ends = _run_one(command, supervisor)
    else:
        ends = _run_several(command, supervisor, processes=processes, master_port=master_port)
    result = outcome(ends, asked=supervisor.asked, forced=supervisor.forced)
    _tell(result, processes=processes)
    return result


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
    """Run `command` in processes of an agent; in none where the run is asked to leave before."""
    run_processes: Callable[..., list[ProcessEnd]]
    try:
        with supervisor.interruption():
            # Imported here, because it imports torch, which takes seconds and which the other case can do without.
            run_processes = importlib.import_module("scaling.core.runner.elastic").run_processes
    except AskedToLeave:
        return []
    return run_processes(command, supervisor, processes=processes, master_port=master_port)


def _run_here(target: str, arguments: Sequence[str]) -> int:
    """Run `target` as if Python had been started with it, a script as the processes of `_run` are."""
    argv, handlers = sys.argv, {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path = list(sys.path)
    sys.argv = [target, *arguments]
    try:
        if _is_script(target):
            sys.path[:0] = [str(Path(target).resolve().parent), str(Path.cwd())]
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            sys.stderr.write(f"{leaving.code}\n")
            return ExitStatus.FAILURE
        return leaving.code or ExitStatus.DONE
    finally:
        sys.argv = argv
        sys.path[:] = path
        with contextlib.suppress(ValueError):  # not in the main thread, which alone has changed them
            for number, handler in handlers.items():  # a process that is done ignores them
                signal.signal(number, handler)
    return ExitStatus.DONE


def _is_script(target: str) -> bool:
    return target.endswith(".py") or os.sep in target


@contextlib.contextmanager
def _environment(processes: int, *, gpus: Sequence[int] | None, script: bool) -> Iterator[None]:
    """Set what the processes inherit; apart from the runner's own variable, only where the user has not set it."""
    values = process_defaults(os.environ, processes, gpus=gpus)
    values[RUNNER_VARIABLE] = str(os.getpid())
    if script:
        values |= script_variables(os.environ)
    with _variables(values):
        yield


@contextlib.contextmanager
def _config_for_processes(path: Path | str, text: str | None) -> Iterator[None]:
    """Let the processes find the configuration as it was read: never on their command lines, which all users see."""
    if text is None:
        yield
        return
    with handed_on(path, text) as copy, _variables({CONFIG_COPY_VARIABLE: str(copy)}):
        yield


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
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


def _tell(result: Outcome, *, processes: int) -> None:
    """Print the first cause."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # a progress display that was killed has left the cursor hidden
    if result.cause is not None:
        sys.stderr.write(f"{result.explain()}\n")
        if not result.is_shared:
            others = "process was" if processes == 2 else f"{processes - 1} processes were"
            sys.stderr.write(f"The other {others} stopped.\n")
    sys.stderr.flush()


def _record(result: Outcome, log_dir: Path, *, asked: signal.Signals | None) -> None:
    """Write to run_state.json what processes that were killed could not, or knew only the consequences of.

    Not where another run is at work in the same folder: this one was refused, or failed before it could be, and the
    file says how the other stands.
    """
    if result.status == ExitStatus.DONE:
        return
    known = RunState.read(log_dir)
    if result.status == ExitStatus.PREEMPTED:
        if known is not None and known.state is RunPhase.PREEMPTED:
            return
        phase, reason = RunPhase.PREEMPTED, f"{asked.name if asked else 'asked to leave'} before training began"
    else:
        cause = result.cause
        reason = f"rank {cause.rank}: {cause.summary}" if cause is not None else "ended at once on a second signal"
        phase = RunPhase.FAILED
    step = 0 if known is None else known.step
    with contextlib.suppress(OSError, StorageError):
        log_dir.mkdir(parents=True, exist_ok=True)
        with locked(log_dir, setting="logger.log_dir", patience=0.0):
            RunState(state=phase, step=step, reason=reason, exit_status=int(result.status)).write(log_dir)
