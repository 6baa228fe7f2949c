"""The errors a user can meet, and the exit status each one ends a program with."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final


class ExitStatus(IntEnum):
    """The status that a finished process reports to its scheduler (names follow sysexits.h where it has one)."""

    DONE = 0
    FAILURE = 1
    USER_INPUT = 2
    DATA_REFUSED = 65
    HANG = 70
    STORAGE = 74
    PREEMPTED = 75


OUTPUT_CLOSED: Final = 128 + signal.SIGPIPE
"""Status of a process whose output nobody reads any more, as in `... | head`: the same as if SIGPIPE had ended it."""


class ScalingError(Exception):
    """Base of every error this library raises on purpose. The message says what is wrong, the values, what to do."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILURE


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration: where, and what to do about it."""

    path: str
    """Dotted path into the configuration, for example `topology.model_parallel_size`; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(ScalingError):
    """The configuration cannot work. The error carries every problem found, not only the first."""

    exit_status = ExitStatus.USER_INPUT

    def __init__(self, problems: str | Problem | Iterable[Problem], *, source: str | None = None) -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.source = source
        lines = [str(problem) for problem in self.problems]
        if len(lines) == 1 and source is None:
            super().__init__(lines[0])
        else:
            count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
            where = f" in {source}" if source else ""
            super().__init__("\n".join([f"{count}{where}:", *(f"  - {line}" for line in lines)]))


class LayoutError(ScalingError):
    """Sizes, ranks or devices do not fit together."""

    exit_status = ExitStatus.USER_INPUT


class ScheduleError(ScalingError):
    """A pipeline schedule cannot run, or a layer broke the contract between stages."""


class DataError(ScalingError):
    """A data set is missing, malformed or does not fit the model."""

    exit_status = ExitStatus.USER_INPUT


class DataRefusedError(ScalingError):
    """Too much bad data, or numbers that stayed non-finite for longer than allowed."""

    exit_status = ExitStatus.DATA_REFUSED


class CheckpointError(ScalingError):
    """A checkpoint is absent, damaged or does not fit this run."""

    exit_status = ExitStatus.USER_INPUT


class StorageError(ScalingError):
    """A file could not be written or read."""

    exit_status = ExitStatus.STORAGE


class HangError(ScalingError):
    """Ranks waited for others that did not come."""

    exit_status = ExitStatus.HANG


class AskedToLeave(KeyboardInterrupt):
    """The process was asked to leave and has nothing to finish first. The error carries the signal's name."""
