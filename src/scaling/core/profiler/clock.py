"""One clock for all hosts: offsets between clocks, measured by round trips, and the conversion of times.

A host asks another host for its time. The answer was given at some moment between question and reply, so the offset
computed for the middle of the round trip is off by at most half its length (Cristian, Distributed Computing 3, 1989).
The shortest round trip is the most precise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

MOST_DRIFT: Final = 5e-4
"""Seconds by which two clocks drift apart per second: NTP corrects a clock by at most 500 parts per million."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_CLOCKS: Final = Path("/proc/self/ns/time")


def host_of_this_process() -> str | None:
    """Return a name of the clock that `time.perf_counter` reads; None where the system does not provide one.

    Processes of one boot share the clock, and so do containers, unless they have a time namespace of their own.
    """
    try:
        own = _CLOCKS.stat().st_ino if _CLOCKS.exists() else 0
        return f"{_BOOT.read_text().strip()} {own}"
    except OSError:
        return None


@dataclass(frozen=True)
class HostClock:
    """The clock of this process, which is monotonic. Tests use another one."""

    host: str | None = field(default_factory=host_of_this_process)
    """Processes whose clocks have the same name share one clock. None: no other process shares it."""

    def now(self) -> float:
        """Return seconds since some moment in the past."""
        return time.perf_counter()


@final
@dataclass(frozen=True)
class Offset:
    """The number to add to a clock, at the time `at`, to get the time of another clock."""

    at: float
    value: float
    uncertainty: float
    """How far the value may be from the truth, in either direction."""


@final
@dataclass(frozen=True)
class RoundTrip:
    """One question for another clock's time, in seconds. `sent` and `received` are times of the own clock."""

    sent: float
    answered: float
    received: float

    def offset(self) -> Offset:
        """Return the offset that follows from the answer."""
        middle = (self.sent + self.received) / 2
        return Offset(middle, self.answered - middle, (self.received - self.sent) / 2)


def best(trips: Sequence[RoundTrip]) -> Offset:
    """Return the offset that follows from the shortest of some round trips."""
    return min((trip.offset() for trip in trips), key=lambda offset: offset.uncertainty)


@final
@dataclass(frozen=True)
class ClockMap:
    """A conversion of times to another clock, whose offset was measured twice and is taken to drift linearly."""

    begin: Offset
    end: Offset

    def __call__(self, at: float) -> float:
        """Return the other clock's time."""
        length = self.end.at - self.begin.at
        part = (at - self.begin.at) / length if length > 0 else 0.0
        return at + self.begin.value + part * (self.end.value - self.begin.value)

    @property
    def uncertainty(self) -> float:
        """Return the largest error of a time between the two measurements, in seconds.

        It is the larger uncertainty of the two, plus the part of their difference that drift cannot explain.
        """
        measured = self.begin.uncertainty + self.end.uncertainty
        drift = MOST_DRIFT * abs(self.end.at - self.begin.at)
        surprise = abs(self.end.value - self.begin.value) - drift - measured
        return max(self.begin.uncertainty, self.end.uncertainty) + max(0.0, surprise)


def between_ranks(uncertainties: Sequence[float], hosts: Sequence[str]) -> float:
    """Return the largest error between times of two ranks, given the uncertainty of each rank against rank 0.

    Ranks of one host share one clock, so times on one host have no error between them.
    """
    of_host: dict[str, float] = {}
    for host, uncertainty in zip(hosts, uncertainties, strict=True):
        of_host[host] = max(uncertainty, of_host.get(host, 0.0))
    return sum(sorted(of_host.values())[-2:]) if len(of_host) > 1 else 0.0
