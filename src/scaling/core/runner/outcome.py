"""The outcome of a run, from how each process ended: its exit status, and the message that the user reads first."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from scaling.core.errors import OUTPUT_CLOSED, ExitStatus
from scaling.core.runner.remedies import REMEDY_OF_LOST_HOST, remedy_of_signal
from scaling.core.runner.report import Report

CLEARLY_EARLIER_SECONDS: Final = 2.0
"""A failure of a rank comes before the loss of another host only if it is earlier by this much: the clocks of hosts may
differ by as much, and the client of a killed host ends within a second of the kill."""

_LOST_PEER: Final = re.compile(
    r"connection|\bpeer\b|timed? ?out|gloo|nccl|socket|broken pipe|unreachable|no route", re.IGNORECASE
)
"""Words with which libraries say that another process does not answer any more."""


@dataclass(frozen=True, kw_only=True)
class ProcessEnd:
    """How one process ended."""

    rank: int
    exit_code: int
    """Its status; negative for the signal that ended it."""
    report: Report | None = None
    """Its own report, if it left one."""
    time: float = float("inf")
    """When its end was noticed, in seconds since the epoch."""
    stopped: bool = False
    """True where the runner killed it."""
    host: str | None = None
    """The machine it ran on, where there are several."""
    last_lines: tuple[str, ...] = ()
    """The last lines that it printed, for a process that left no report."""

    def as_dict(self) -> dict[str, Any]:
        """Return the end as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProcessEnd:
        """Return the end from the values of `as_dict`, which may have passed through JSON."""
        report = None if values["report"] is None else Report(**values["report"])
        return cls(**{**values, "report": report, "last_lines": tuple(values["last_lines"])})

    @property
    def ranks(self) -> Sequence[int]:
        """Return the ranks that this is about."""
        return (self.rank,)

    @property
    def who(self) -> str:
        """Return the name of the process in messages."""
        return f"rank {self.rank}" if self.host is None else f"rank {self.rank} on {self.host}"

    @property
    def ended_by(self) -> int | None:
        """Return the number of the signal that ended the process, if one did."""
        return -self.exit_code if self.exit_code < 0 else None

    @property
    def status(self) -> int:
        """Return the exit status as a shell shows it: for a signal, 128 plus its number."""
        return self.exit_code if self.ended_by is None else 128 + self.ended_by

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
    def remedy(self) -> str:
        """Return what to try; empty where the summary says it."""
        if self.report is not None:
            return self.report.remedy
        return "" if self.ended_by is None else remedy_of_signal(self.ended_by)

    @property
    def order(self) -> tuple[float, float, int]:
        """Return the sort key of this end; the end with the smallest is the first cause.

        A process that left no report comes before all that did: the loss of another process shows as an exception,
        which is reported, or as an abort in the libraries underneath.
        """
        if self.report is not None:
            return (self.report.time, self.time, self.rank)
        return (self.time if self.ended_by == signal.SIGABRT else float("-inf"), self.time, self.rank)


@dataclass(frozen=True, kw_only=True)
class HostLoss:
    """A machine that was lost without a report on its processes, or that could not do its part."""

    host: str
    ranks: tuple[int, ...]
    why: str
    """The message of the client that held the connection to it."""
    time: float = float("inf")
    """When it was noticed, in seconds since the epoch."""
    report: Report | None = None
    """The machine's own report of why it could not do its part; None: it is gone."""
    last_lines: tuple[str, ...] = ()
    """The last lines that its processes printed."""

    @property
    def who(self) -> str:
        """Return the name of the machine in messages."""
        if self.report is not None:
            return f"host {self.host}"
        some = "rank" if len(self.ranks) == 1 else "ranks"
        return f"host {self.host} ({some} {_listed(self.ranks)}) is gone"

    @property
    def status(self) -> int:
        """Return the exit status for this loss."""
        return ExitStatus.FAILURE.value if self.report is None else self.report.status

    @property
    def summary(self) -> str:
        """Return the reason, without a traceback."""
        return self.why if self.report is None else self.report.message

    @property
    def remedy(self) -> str:
        """Return what to try; empty where the summary says it."""
        return REMEDY_OF_LOST_HOST if self.report is None else self.report.remedy

    @property
    def order(self) -> tuple[float, float, int]:
        """Return the sort key of this loss, comparable with that of a process's end."""
        return (self.time if self.report is None else self.report.time, self.time, min(self.ranks, default=0))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run."""

    status: int
    cause: ProcessEnd | HostLoss | None = None
    """The process or machine whose failure was the first; None where nothing failed."""
    is_shared: bool = False
    """Whether every process reports the same, as when a file that all of them read is wrong."""

    @property
    def reason(self) -> str:
        """Return the first cause: the process or machine, and why, without a traceback; empty where nothing failed."""
        return "" if self.cause is None else f"{self.cause.who}: {self.cause.summary}"

    @property
    def trace(self) -> str:
        """Return the traceback of the first cause; empty where there is none, or the error is of the user's making."""
        return self.cause.report.trace if self.cause is not None and self.cause.report is not None else ""

    @property
    def last_lines(self) -> str:
        """Return the last lines of a first cause that left no report, indented; empty where there are none."""
        if self.cause is None or self.cause.report is not None or not self.cause.last_lines:
            return ""
        return "\n".join(["its last lines:", *(f"    {line}" for line in self.cause.last_lines)])

    def explain(self, *, processes: int = 1, here: str | None = None, log_dir: Path | None = None) -> str:
        """Return the message for the user; it ends with who failed, where and why, and what to try.

        Long parts come before that: the traceback, unless the error is of the user's own making, or the last lines
        printed. `processes` is the number of processes, `here` the name of this machine, where all of them ran if they
        name none, and `log_dir` the log folder of a training, which can be started again.
        """
        cause = self.cause
        if cause is None:
            return ""
        who = cause.who
        if isinstance(cause, ProcessEnd) and cause.host is None and here is not None:
            who = f"{who} on {here}"
        before = self.trace
        if self.last_lines:
            before += f"{self.last_lines}\n"
        others = processes - len(cause.ranks)
        if not self.is_shared and others > 0:
            before += f"The other {'process was' if others == 1 else f'{others} processes were'} stopped.\n"
        text = f"{before}error: {cause.summary if self.is_shared else f'{who}: {cause.summary}'}"
        advice = [cause.remedy] if cause.remedy else []
        if advice and log_dir is not None:
            if isinstance(cause, ProcessEnd):
                advice.append(f"its log is {log_dir / f'rank_{cause.rank}.log'}")
            advice.append("the same command goes on from the newest checkpoint, if there is one")
        return "\ntry: ".join([text, "; ".join(advice)]) if advice else text


def outcome(
    ends: Sequence[ProcessEnd],
    losses: Sequence[HostLoss] = (),
    *,
    asked: signal.Signals | None = None,
    forced: bool = False,
) -> Outcome:
    """Return the outcome of a run from the ends of its processes and the losses of its machines.

    `asked` is the signal by which the runner was asked to leave, `forced` whether a second one made it leave at once. A
    process that was asked before it could handle the signal is ended by it: then there was nothing to save, and the run
    may be started again like one that saved. Reports of other processes after that are consequences. A run that was
    asked before there were processes (no `ends`) may be started again too. The loss of a machine comes before the
    failures that follow from it elsewhere.
    """
    failed = [end for end in ends if end.exit_code != 0]
    if asked is not None and forced and (failed or losses):
        return Outcome(status=128 + asked)
    left = [end for end in failed if end.exit_code == ExitStatus.PREEMPTED]
    causes = [end for end in failed if end not in left and not _was_stopped(end)]
    if asked is not None:
        asked_at = min((end.time for end in failed if _was_stopped(end) and not end.stopped), default=float("inf"))
        causes = [end for end in causes if end.report is None or end.report.time <= asked_at]
    if cause := _first(causes, losses):
        if isinstance(cause, ProcessEnd) and _could_not_write(cause):
            return Outcome(status=OUTPUT_CLOSED)
        is_shared = not losses and len({end.summary for end in ends}) == 1
        return Outcome(status=cause.status, cause=cause, is_shared=is_shared)
    if left or (asked is not None and (failed or not ends)):
        return Outcome(status=ExitStatus.PREEMPTED)
    if failed:
        return Outcome(status=failed[0].status, cause=failed[0], is_shared=len(ends) == 1)
    return Outcome(status=ExitStatus.DONE)


def _first(causes: Sequence[ProcessEnd], losses: Sequence[HostLoss]) -> ProcessEnd | HostLoss | None:
    """Return the first cause; None where there is none."""
    gone = [loss for loss in losses if loss.report is None]
    said: list[ProcessEnd | HostLoss] = [*causes, *(loss for loss in losses if loss.report is not None)]
    if gone:
        first = min(gone, key=lambda loss: loss.order)
        said = [one for one in said if _is_before(one, first)] or [first]
    return min(said, key=lambda one: one.order, default=None)


def _is_before(other: ProcessEnd | HostLoss, loss: HostLoss) -> bool:
    """Return whether a failure comes before the loss of a machine, and so does not follow from it.

    The loss of a machine that is cut off is noticed only after many seconds. By then others may have reported it in
    their own words: a report of a lost peer, or of a hang, counts as later than the loss whatever its time.
    """
    if other.report is None:
        is_abort = isinstance(other, ProcessEnd) and other.ended_by == signal.SIGABRT
        return not is_abort and other.time < loss.time - CLEARLY_EARLIER_SECONDS
    if other.report.status == ExitStatus.HANG or _LOST_PEER.search(other.report.message):
        return False
    return other.report.time < loss.time - CLEARLY_EARLIER_SECONDS


def _was_stopped(end: ProcessEnd) -> bool:
    return end.stopped or end.ended_by in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def _could_not_write(end: ProcessEnd) -> bool:
    return end.report is None and end.exit_code in (OUTPUT_CLOSED, -signal.SIGPIPE)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _listed(ranks: Sequence[int]) -> str:
    """Return ranks as text: all of up to four; of more, which are consecutive, the first and the last."""
    return ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]} to {ranks[-1]}"
