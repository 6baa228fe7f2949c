"""Fault points: named places where a test makes a process die, hang or fail, and nothing happens otherwise.

`SCALING_FAULT` arms them: `NAME[@RANK][:PASSAGE]=ACTION`, several separated by commas. RANK is a number or `*` (the
default: every rank); PASSAGE counts from 1 (the default) or is `*` (every passage). For example
`save.after_data@1:2=kill` kills rank 1 when it passes `save.after_data` for the second time.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final

VARIABLE: Final = "SCALING_FAULT"
EXIT_STATUS: Final = 3
"""Status of a process that the action `exit` ends."""


class InjectedFault(RuntimeError):
    """The exception that the action `raise` raises."""


def _hang(where: str) -> None:
    while True:
        time.sleep(3600)


def _kill(where: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    _hang(where)  # the signal may be delivered to another thread first; nothing may run in between


def _exit(where: str) -> None:
    os._exit(EXIT_STATUS)


def _raise(where: str) -> None:
    raise InjectedFault(f"injected at {where}")


def _input_output_error(where: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), f"injected at {where}")


def _disk_full(where: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"injected at {where}")


def _terminate(where: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _user_signal(where: str) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


ACTIONS: Final[Mapping[str, Callable[[str], None]]] = MappingProxyType(
    {
        "kill": _kill,
        "exit": _exit,
        "raise": _raise,
        "hang": _hang,
        "eio": _input_output_error,
        "enospc": _disk_full,
        "term": _terminate,
        "usr1": _user_signal,
    }
)
"""The actions at a point: SIGKILL, `os._exit`, an exception, an endless wait, an OSError, SIGTERM, SIGUSR1."""

_PATTERN: Final = re.compile(r"(?P<name>[\w.]+)(@(?P<rank>\d+|\*))?(:(?P<passage>[1-9]\d*|\*))?=(?P<action>\w+)")


@dataclass(frozen=True)
class Fault:
    """One armed fault; a `rank` or `passage` of None means every one."""

    name: str
    rank: int | None
    passage: int | None
    action: str
    passages: Iterator[int] = field(default_factory=lambda: itertools.count(1), compare=False, repr=False)

    def is_due(self, name: str, rank: int) -> bool:
        """Return whether the fault is due at this passage of `name` on `rank`; count the passage if both match."""
        if self.name != name or self.rank not in (None, rank):
            return False
        return self.passage in (None, next(self.passages))


def parse(specification: str) -> tuple[Fault, ...]:
    """Return the faults that `specification` arms. Raise `ValueError` where it cannot be parsed."""
    faults = []
    for text in filter(None, (part.strip() for part in specification.split(","))):
        found = _PATTERN.fullmatch(text)
        if found is None or found["action"] not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}: {text!r} is not NAME[@RANK][:PASSAGE]=ACTION with ACTION one of {', '.join(ACTIONS)}"
            )
        rank = None if found["rank"] in (None, "*") else int(found["rank"])
        passage = None if found["passage"] == "*" else int(found["passage"] or 1)
        faults.append(Fault(found["name"], rank, passage, found["action"]))
    return tuple(faults)


@lru_cache(maxsize=1)
def _armed(specification: str) -> tuple[Fault, ...]:
    return parse(specification)


def point(name: str, *, rank: int | None = None) -> None:
    """Do nothing, unless `SCALING_FAULT` arms `name` for this rank and this passage.

    `rank` defaults to the environment variable RANK, else 0. The environment is read at every passage (about a
    microsecond), so that a process forked from a server that imported this module long before can still be armed.
    """
    specification = os.environ.get(VARIABLE)
    if not specification:
        return
    here = int(os.environ.get("RANK", "0")) if rank is None else rank
    due = [fault for fault in _armed(specification) if fault.is_due(name, here)]  # all count, before one of them raises
    for fault in due:
        ACTIONS[fault.action](f"{name} on rank {here}")


def forget_passages() -> None:
    """Count passages from 1 again: for tests that arm the same fault several times in one process."""
    _armed.cache_clear()
