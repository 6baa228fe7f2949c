"""What ranks have recorded comes to rank 0 whole, whatever each has."""

from __future__ import annotations

from unittest import mock

from scaling.core.profiler import gathering
from scaling.core.profiler.gathering import gather_bytes, piece_of
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.worlds import connected

CONTENTS = (b"", bytes(range(256)) * 5, b"x" * 2048)


def gather(rank: int, world_size: int) -> list[bytes] | None:
    with connected(data=world_size) as topology, mock.patch.object(gathering, "_LARGEST_PIECE", 1024):
        return gather_bytes(topology, CONTENTS[rank])


def test_bytes_of_different_lengths_arrive_on_rank_0() -> None:
    assert run_distributed(gather, 3) == [list(CONTENTS), None, None]
    assert gather_bytes(Topology.single(), b"alone") == [b"alone"]


def test_a_round_takes_a_bounded_amount_of_memory() -> None:
    assert piece_of([0, 0]) == 1
    assert piece_of([10, 700]) == 700
    assert piece_of([2**30] * 2) == 2**20
    assert piece_of([2**30] * 4096) == 2**14
