"""Measure the offsets between the clocks of all hosts and that of rank 0, through the store."""

from __future__ import annotations

from typing import Any, Final

from scaling.core.profiler.clock import HostClock, Offset, RoundTrip, best
from scaling.core.topology.topology import Topology
from scaling.core.waiting import waits

ROUND_TRIPS: Final = 10
"""Round trips of each host. Most of the first one is waiting for rank 0."""


def hosts_of(topology: Topology, clock: HostClock) -> list[str]:
    """Return the names of all ranks' clocks, by rank. Collective: all ranks."""
    return topology.agree("hosts of clocks", clock.host, _named)


def _named(hosts: list[str | None]) -> list[str]:
    return [f"rank {rank}" if host is None else host for rank, host in enumerate(hosts)]


def measure_offset(topology: Topology, clock: HostClock, hosts: list[str]) -> Offset:
    """Return the offset to add to this rank's clock to get the time of rank 0's.

    The first rank of each other host asks rank 0, one host after the other, and the other ranks of the host get the
    result. Communicates some numbers over the store. Collective: all ranks.
    """
    prefix = topology.own_prefix("clock")
    leaders = [hosts.index(host) for host in dict.fromkeys(hosts) if host != hosts[0]]
    measured: Offset | None = None
    if topology.rank == 0:
        for leader in leaders:
            _answer(topology.store, f"{prefix}/{leader}", clock)
    elif topology.rank in leaders:
        measured = best(_ask(topology.store, f"{prefix}/{topology.rank}", clock))
    mine = None if measured is None else [measured.at, measured.value, measured.uncertainty]
    everyone: list[list[float] | None] = topology.agree("offsets of clocks", mine, list)
    found = everyone[hosts.index(hosts[topology.rank])]
    return Offset(clock.now(), 0.0, 0.0) if found is None else Offset(*found)


@waits
def _ask(store: Any, prefix: str, clock: HostClock) -> list[RoundTrip]:
    trips = []
    for number in range(ROUND_TRIPS):
        sent = clock.now()
        store.set(f"{prefix}/{number}/asked", "")
        answered = float(store.get(f"{prefix}/{number}/answered"))
        trips.append(RoundTrip(sent, answered, clock.now()))
    return trips


@waits
def _answer(store: Any, prefix: str, clock: HostClock) -> None:
    for number in range(ROUND_TRIPS):
        store.get(f"{prefix}/{number}/asked")
        store.set(f"{prefix}/{number}/answered", repr(clock.now()))
