"""run_state.json: the state of a run, for schedulers that see only their launcher's exit status."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from scaling.core.errors import ExitStatus, ScalingError, StorageError
from scaling.core.storage.writing import write_json

_log = logging.getLogger(__name__)

RUN_STATE_FILE = "run_state.json"


class RunPhase(str, Enum):
    """The state of a run."""

    RUNNING = "running"
    FINISHED = "finished"
    PREEMPTED = "pre-empted"
    FAILED = "failed"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The content of run_state.json."""

    state: RunPhase
    step: int = 0
    """Last finished step."""
    reason: str | None = None
    """Why the run is not running any more, in words."""
    exit_status: int | None = None
    """The exit status of the process; None while it runs."""
    updated: str = field(default_factory=_now)

    def write(self, log_dir: Path) -> None:
        """Replace the file in `log_dir` atomically: a reader finds the old state or the new one."""
        write_json(log_dir / RUN_STATE_FILE, asdict(self) | {"state": self.state.value})

    @classmethod
    def read(cls, log_dir: Path) -> RunState | None:
        """Return the state in `log_dir`, None where the file is missing or malformed."""
        try:
            values = json.loads((log_dir / RUN_STATE_FILE).read_text(encoding="utf-8"))
            return cls(**{**values, "state": RunPhase(values["state"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None


class RunStateRecorder:
    """Context manager around the whole work of one process of the run that keeps run_state.json up to date.

    Rank 0 records that the run is running, pre-empted or finished. An exception that leaves the context is recorded as
    a failure by the first rank that has one: failures of other ranks afterwards are consequences. Without `log_dir`
    nothing is written. A folder that cannot be written is an error at the start and a warning later, once, with a count
    at the end.
    """

    def __init__(self, log_dir: Path | None, *, rank: int = 0) -> None:
        self._log_dir = log_dir
        self._rank = rank
        self._started = _now()
        self._step = 0
        self._failed_writes = 0

    def running(self, step: int) -> None:
        """Record that the run is running and has finished `step`."""
        self._record(RunState(state=RunPhase.RUNNING, step=step))

    def preempted(self, step: int, reason: str) -> None:
        """Record that the run saved its state at `step` and leaves."""
        status = ExitStatus.PREEMPTED
        self._record(RunState(state=RunPhase.PREEMPTED, step=step, reason=reason, exit_status=status.value))

    def finished(self, step: int) -> None:
        """Record that the run has done all its steps."""
        self._record(RunState(state=RunPhase.FINISHED, step=step, exit_status=ExitStatus.DONE.value))

    def __enter__(self) -> Self:
        if self._log_dir is not None and self._rank == 0:
            try:
                self._log_dir.mkdir(parents=True, exist_ok=True)
                RunState(state=RunPhase.RUNNING).write(self._log_dir)
            except OSError as error:
                raise StorageError(
                    f"{self._log_dir} cannot be written ({error}); set logger.log_dir to another folder"
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record_end(error)
        if self._failed_writes > 1:
            _log.warning("%s could not be written %d times", RUN_STATE_FILE, self._failed_writes)

    def _record_end(self, error: BaseException | None) -> None:
        match error:
            case None | SystemExit():
                return
            case KeyboardInterrupt():
                self.preempted(self._step, "SIGINT")
            case _:
                status = error.exit_status if isinstance(error, ScalingError) else ExitStatus.FAILURE
                reason = f"rank {self._rank}: {describe_error(error)}"
                self._record_failure(
                    RunState(state=RunPhase.FAILED, step=self._step, reason=reason, exit_status=status)
                )

    def _record(self, state: RunState) -> None:
        self._step = state.step
        if self._rank == 0 and self._log_dir is not None:
            self._write(state, self._log_dir)

    def _record_failure(self, state: RunState) -> None:
        if self._log_dir is None:
            return
        known = RunState.read(self._log_dir)
        if known is None or known.state is not RunPhase.FAILED or known.updated < self._started:
            self._write(state, self._log_dir)

    def _write(self, state: RunState, log_dir: Path) -> None:
        try:
            state.write(log_dir)
        except OSError as error:
            self._failed_writes += 1
            if self._failed_writes == 1:
                _log.warning("%s cannot be written (%s); training goes on", log_dir / RUN_STATE_FILE, error)


def describe_error(error: BaseException) -> str:
    """Return an error's message, preceded by its type where the message alone is not meant for a user."""
    return str(error) if isinstance(error, ScalingError) else f"{type(error).__name__}: {error}"
