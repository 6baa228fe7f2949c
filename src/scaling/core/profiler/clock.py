"""One clock for all hosts: what round trips say about how far two clocks are apart, and what to add to a time.

A host asks another one for its time, and learns it between asking and being told: the offset lies within half of that
round trip of its middle (Cristian, Distributed Computing 3, 1989). The shortest round trip says most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

MOST_DRIFT: Final = 5e-4
"""Seconds by which two clocks move apart in one: NTP corrects a clock by at most 500 parts in a million."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_CLOCKS: Final = Path("/proc/self/ns/time")


def host_of_this_process() -> str | None:
    """Return what names the clock that `time.perf_counter` reads; None where nothing says so.

    Processes of one boot share it, and containers too, unless theirs has been moved.
    """
    try:
        own = _CLOCKS.stat().st_ino if _CLOCKS.exists() else 0
        return f"{_BOOT.read_text().strip()} {own}"
    except OSError:
        return None


@dataclass(frozen=True)
class HostClock:
    """The clock of this process, which only ever goes forward. A test has another one."""

    host: str | None = field(default_factory=host_of_this_process)
    """Processes whose clocks have the same name have the same clock. None: nobody else has it."""

    def now(self) -> float:
        """Return seconds since some moment of the past."""
        return time.perf_counter()


@final
@dataclass(frozen=True)
class Offset:
    """What was to be added to a clock at one of its times to have another one's."""

    at: float
    value: float
    uncertainty: float
    """How far the value may be from the truth, in either direction."""


@final
@dataclass(frozen=True)
class RoundTrip:
    """One question for another clock's time, in seconds: `sent` and `received` by the own clock."""

    sent: float
    answered: float
    received: float

    def offset(self) -> Offset:
        """Return what the answer says."""
        middle = (self.sent + self.received) / 2
        return Offset(middle, self.answered - middle, (self.received - self.sent) / 2)


def best(trips: Sequence[RoundTrip]) -> Offset:
    """Return what the shortest of some round trips says."""
    return min((trip.offset() for trip in trips), key=lambda offset: offset.uncertainty)


@final
@dataclass(frozen=True)
class ClockMap:
    """Takes times of one clock to another, whose offset was measured twice; between and beside, it drifts evenly."""

    begin: Offset
    end: Offset

    def __call__(self, at: float) -> float:
        """Return the other clock's time."""
        length = self.end.at - self.begin.at
        part = (at - self.begin.at) / length if length > 0 else 0.0
        return at + self.begin.value + part * (self.end.value - self.begin.value)

    @property
    def uncertainty(self) -> float:
        """Return how far a time between the two measurements may be off, in seconds.

        It is that of the worse one, and what they differ by more than the clocks can have drifted.
        """
        measured = self.begin.uncertainty + self.end.uncertainty
        drift = MOST_DRIFT * abs(self.end.at - self.begin.at)
        surprise = abs(self.end.value - self.begin.value) - drift - measured
        return max(self.begin.uncertainty, self.end.uncertainty) + max(0.0, surprise)


def between_ranks(uncertainties: Sequence[float], hosts: Sequence[str]) -> float:
    """Return how far times of two ranks may be off against each other, given how far each is against rank 0.

    Ranks of one host have one clock, however far it is from that of others.
    """
    of_host: dict[str, float] = {}
    for host, uncertainty in zip(hosts, uncertainties, strict=True):
        of_host[host] = max(uncertainty, of_host.get(host, 0.0))
    return sum(sorted(of_host.values())[-2:]) if len(of_host) > 1 else 0.0
