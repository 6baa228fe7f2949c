"""From how each process ended: what the run ends with, and what its user reads first."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from scaling.core.errors import ExitStatus
from scaling.core.runner.report import Report

OUTPUT_CLOSED: Final = 128 + signal.SIGPIPE
"""Status of a process, as of one ended by the signal, whose output nobody reads any more: that of `... | head`."""


@dataclass(frozen=True, kw_only=True)
class ProcessEnd:
    """How one process ended."""

    rank: int
    exit_code: int
    """Its status; negative for the signal that ended it."""
    report: Report | None = None
    """What it said itself."""
    time: float = float("inf")
    """When its end was noticed, in seconds since the epoch."""
    stopped: bool = False
    """True where the runner killed it."""
    host: str | None = None
    """The machine it ran on, where there are several."""
    last_lines: tuple[str, ...] = ()
    """The end of what it printed, for the case that it said nothing about its end itself."""

    def as_dict(self) -> dict[str, Any]:
        """Return the end as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProcessEnd:
        """Return the end that `as_dict` made these of, be it by way of JSON."""
        report = None if values["report"] is None else Report(**values["report"])
        return cls(**{**values, "report": report, "last_lines": tuple(values["last_lines"])})

    @property
    def ended_by(self) -> int | None:
        """Return the number of the signal that ended the process, if one did."""
        return -self.exit_code if self.exit_code < 0 else None

    @property
    def summary(self) -> str:
        """Return why the process ended, without a traceback."""
        if self.report is not None:
            return self.report.message
        if self.ended_by is None:
            return f"the process ended with status {self.exit_code}; its output says why, if anything does"
        text = f"the process was ended by {_name(self.ended_by)}"
        if self.ended_by == signal.SIGKILL:
            text += "; if nobody did that by hand, the machine ran out of memory"
        return text

    @property
    def order(self) -> tuple[float, float, int]:
        """Sort ends by when they came about; the smallest is the first cause.

        A process that ended without a word comes before all that had something to say: that another one is gone shows
        as an exception, which is reported, or as an abort in the libraries underneath.
        """
        if self.report is not None:
            return (self.report.time, self.time, self.rank)
        return (self.time if self.ended_by == signal.SIGABRT else float("-inf"), self.time, self.rank)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the run ends with."""

    status: int
    cause: ProcessEnd | None = None
    """The process whose failure was the first; None where nothing failed."""
    is_shared: bool = False
    """Whether every process says the same, as when a file that all of them read is wrong."""

    def explain(self) -> str:
        """Return what the user reads: the first cause, with its traceback unless it is of the user's own making."""
        if self.cause is None:
            return ""
        trace = self.cause.report.trace if self.cause.report is not None else ""
        who = "" if self.is_shared else f"rank {self.cause.rank}: "
        return f"{trace}error: {who}{self.cause.summary}"


def outcome(ends: Sequence[ProcessEnd], *, asked: signal.Signals | None = None, forced: bool = False) -> Outcome:
    """Return what a run of processes that ended like this ends with.

    `asked` is the signal by which the runner was asked to leave, `forced` whether a second one made it leave at once.
    A process that was asked before it could listen dies of the signal: then there was nothing to save, and the run may
    be started again like one that saved. What others report after that is a consequence. A run that was asked before
    there were processes, without `ends`, may be started again too.
    """
    failed = [end for end in ends if end.exit_code != 0]
    if asked is not None and forced and failed:
        return Outcome(status=128 + asked)
    left = [end for end in failed if end.exit_code == ExitStatus.PREEMPTED]
    causes = [end for end in failed if end not in left and not _was_stopped(end)]
    if asked is not None:
        asked_at = min((end.time for end in failed if _was_stopped(end) and not end.stopped), default=float("inf"))
        causes = [end for end in causes if end.report is None or end.report.time <= asked_at]
    if causes:
        cause = min(causes, key=lambda end: end.order)
        if _could_not_write(cause):
            return Outcome(status=OUTPUT_CLOSED)
        is_shared = len({end.summary for end in ends}) == 1
        return Outcome(status=_status(cause), cause=cause, is_shared=is_shared)
    if left or (asked is not None and (failed or not ends)):
        return Outcome(status=ExitStatus.PREEMPTED)
    if failed:
        return Outcome(status=_status(failed[0]), cause=failed[0], is_shared=len(ends) == 1)
    return Outcome(status=ExitStatus.DONE)


def _was_stopped(end: ProcessEnd) -> bool:
    return end.stopped or end.ended_by in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def _could_not_write(end: ProcessEnd) -> bool:
    return end.report is None and end.exit_code in (OUTPUT_CLOSED, -signal.SIGPIPE)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _status(end: ProcessEnd) -> int:
    return end.exit_code if end.ended_by is None else 128 + end.ended_by
