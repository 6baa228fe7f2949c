"""The offsets that ranks measure through the store: one question for each other host, by its first rank."""

from __future__ import annotations

import time
from dataclasses import dataclass

from scaling.core.profiler.clock import HostClock, Offset
from scaling.core.profiler.clock_exchange import hosts_of, measure_offset
from tests.distributed import run_distributed
from tests.reference.worlds import connected

SHIFTS = (0.0, 0.0, -1000.0, -1000.0)


@dataclass(frozen=True)
class Shifted(HostClock):
    """A clock that is some seconds ahead of this machine's."""

    ahead: float = 0.0

    def now(self) -> float:
        """Return its time."""
        return time.perf_counter() + self.ahead


def measure(rank: int, world_size: int) -> tuple[list[str], Offset]:
    with connected(data=world_size) as topology:
        clock = Shifted(None if rank == 1 else f"host {SHIFTS[rank]}", SHIFTS[rank])
        hosts = hosts_of(topology, clock)
        return hosts, measure_offset(topology, clock, hosts)


def test_every_rank_learns_what_is_to_be_added_to_its_clock() -> None:
    found = run_distributed(measure, 4)
    assert {tuple(hosts) for hosts, _ in found} == {("host 0.0", "rank 1", "host -1000.0", "host -1000.0")}
    offsets = [offset for _, offset in found]
    assert (offsets[0].value, offsets[0].uncertainty) == (0.0, 0.0)
    for offset, ahead in zip(offsets[1:], SHIFTS[1:], strict=True):  # also where nothing says whose clock it is
        assert 0 < offset.uncertainty < 10
        assert abs(offset.value + ahead) <= offset.uncertainty
    assert offsets[2] == offsets[3]
