"""Attempts: restart a whole run after it has failed, and record the outcome of each attempt."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Protocol

from scaling.core.errors import AskedToLeave, ExitStatus, ScalingError, StorageError
from scaling.core.logging.live_line import ERASE, is_terminal
from scaling.core.logging.run_file import write_attempts
from scaling.core.logging.run_state import RunPhase, RunState
from scaling.core.runner.outcome import Outcome
from scaling.core.runner.supervisor import Supervisor
from scaling.core.storage.lock import locked

RESTARTED: Final = (ExitStatus.FAILURE, ExitStatus.HANG, ExitStatus.STORAGE)
"""Exit statuses after which a run is restarted, besides those of processes that a signal has ended."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The record of one start of all processes."""

    attempt: int
    """Counted from 1, as in events.jsonl and on the terminal."""
    started: str
    ended: str
    status: int
    reason: str | None
    """The first cause, without traceback, or else the signal that asked the run to leave; None where there was
    neither."""
    host: str | None
    """The machine of the first cause, where there are several."""


class Job(Protocol):
    """A run that can be restarted as a whole."""

    @property
    def processes(self) -> int:
        """Return the number of processes, on all machines."""

    def supervisor(self) -> Supervisor:
        """Return the supervisor of an attempt."""

    def prepare(self, attempt: int) -> None:
        """Make sure that an attempt can start; `AskedToLeave` may interrupt this. An error ends the run."""

    def run(self, attempt: int, supervisor: Supervisor) -> Outcome:
        """Run all processes of an attempt to their end; return how they ended."""


def restarts(status: int, attempt: int, max_restarts: int) -> bool:
    """Return whether a run is restarted after `attempt`, counted from 0, has ended with `status`.

    It is restarted after an unexpected error (1), a hang (70), a storage error (74) and an end by a signal (128 plus
    its number). It is not restarted when it is done, after an error that the user has to correct (2) or decide on (65),
    when it was asked to leave (75), or when nobody reads its output any more (141).
    """
    if attempt >= max_restarts:
        return False
    return status in RESTARTED or (status > 128 and status != 128 + signal.SIGPIPE)


def run_attempts(job: Job, *, max_restarts: int, log_dir: Path | None) -> int:
    """Run `job` until it needs no further attempt or has none left; print the first cause, and return the exit status.

    A signal before the first attempt, between two attempts, or during one ends the run: with 75 unless the attempt
    ended otherwise.
    """
    attempts: list[Attempt] = []
    attempt = 0
    result: Outcome | None = None
    supervisor: Supervisor | None = None
    with Supervisor() as outer:
        while True:
            try:
                with outer.interruption():
                    job.prepare(attempt)
            except AskedToLeave:
                when = "between two attempts" if attempts else "before training began"
                _record(Outcome(status=ExitStatus.PREEMPTED), log_dir, asked=outer.asked, when=when)
                return ExitStatus.PREEMPTED
            except ScalingError as error:
                if result is None:
                    raise
                sys.stderr.write(f"error: {error}\n")
                break
            started = _now()
            with job.supervisor() as supervisor:
                supervisor.asked = supervisor.asked or outer.asked  # asked between the two blocks
                result = job.run(attempt, supervisor)
            attempts.append(_described(result, attempt, started, asked=supervisor.asked))
            _record_attempts(log_dir, attempts)
            if supervisor.asked is not None or not restarts(result.status, attempt, max_restarts):
                tell(result, processes=job.processes, log_dir=log_dir)
                break
            _tell_of_restart(result, attempt, max_restarts)
            attempt += 1
    assert result is not None
    assert supervisor is not None
    _record(result, log_dir, asked=supervisor.asked)
    return result.status


def tell(result: Outcome, *, processes: int, log_dir: Path | None = None) -> None:
    """Print the first cause, and nothing after it. `log_dir` is the log folder of a training."""
    with contextlib.suppress(OSError):  # the terminal is gone
        _erase_live_line()
        if result.cause is not None:
            text = result.explain(processes=processes, here=socket.gethostname(), log_dir=log_dir)
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _erase_live_line() -> None:
    """Erase the live line that a killed process has left at the bottom of the terminal."""
    if is_terminal(sys.stderr):
        sys.stderr.write(ERASE)


def _tell_of_restart(result: Outcome, attempt: int, max_restarts: int) -> None:
    """Print why an attempt ended, and that another one follows."""
    ended = f"attempt {attempt + 1} of {max_restarts + 1} ended: {result.reason or f'status {result.status}'}"
    lines = f"{result.last_lines}\n" if result.last_lines else ""
    with contextlib.suppress(OSError):
        _erase_live_line()
        sys.stderr.write(f"{result.trace}{ended}; starting again from the newest checkpoint\n{lines}")
        sys.stderr.flush()


def _described(result: Outcome, attempt: int, started: str, *, asked: signal.Signals | None) -> Attempt:
    reason = result.reason or None
    if reason is None and result.status != ExitStatus.DONE and asked is not None:
        reason = asked.name
    return Attempt(
        attempt=attempt + 1,
        started=started,
        ended=_now(),
        status=int(result.status),
        reason=reason,
        host=None if result.cause is None else result.cause.host,
    )


def _record_attempts(log_dir: Path | None, attempts: list[Attempt]) -> None:
    """Write the attempts of this command to run.json, unless another run is using the same folder."""
    if log_dir is None:
        return
    values: list[dict[str, Any]] = [asdict(attempt) for attempt in attempts]
    with contextlib.suppress(OSError, StorageError):
        log_dir.mkdir(parents=True, exist_ok=True)
        with locked(log_dir, setting="logger.log_dir", patience=0.0):
            write_attempts(log_dir, values)


def _record(
    result: Outcome, log_dir: Path | None, *, asked: signal.Signals | None, when: str = "before training began"
) -> None:
    """Write to run_state.json how the run ended: killed processes could not, and others knew only consequences.

    Nothing is written while another run is using the same folder: this run was refused, or failed before it could be
    refused, and the file holds the state of the other run.
    """
    if result.status == ExitStatus.DONE or log_dir is None:
        return
    known = RunState.read(log_dir)
    if result.status == ExitStatus.PREEMPTED:
        if known is not None and known.state is RunPhase.PREEMPTED:
            return
        phase, reason = RunPhase.PREEMPTED, f"{asked.name if asked else 'asked to leave'} {when}"
    else:
        phase, reason = RunPhase.FAILED, result.reason or "ended at once on a second signal"
    step = 0 if known is None else known.step
    with contextlib.suppress(OSError, StorageError):
        log_dir.mkdir(parents=True, exist_ok=True)
        with locked(log_dir, setting="logger.log_dir", patience=0.0):
            RunState(state=phase, step=step, reason=reason, exit_status=int(result.status)).write(log_dir)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
