"""Memory of several processes: whose it is, whom nobody waits for, and that nothing of it is left."""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from scaling.core.collectives import ops, shared_memory
from scaling.core.topology.layout import Axis
from tests.distributed import run_distributed, run_world
from tests.reference.worlds import connected, model_group

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shared memory is for Linux")


def lose_a_rank(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        ops.all_reduce(torch.ones(3), group)
        if rank == 1:
            os._exit(3)
        ops.all_reduce(torch.ones(3), group)


def test_a_rank_whose_process_has_ended_is_not_waited_for() -> None:
    left, gone = run_world(lose_a_rank, 2, grace=20)
    assert gone.exit_code == 3
    assert left.is_consequence
    assert "the process of rank 1 of a group of 2 has ended" in str(left.error)


def close_and_stay(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        ops.all_reduce(torch.ones(3), group)
        if rank == 1:
            ops.shared.close(group)
            topology.agree("the other rank has noticed", None, len)  # and so its process lives
            return
        with pytest.raises(dist.DistNetworkError, match="the process of rank 1 of a group of 2 has ended"):
            ops.all_reduce(torch.ones(3), group)
        topology.agree("the other rank has noticed", None, len)


def test_a_rank_that_has_closed_the_memory_is_not_waited_for() -> None:
    run_distributed(close_and_stay, 2)


def leave_nothing(rank: int, world_size: int) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:scaling")

    with connected(model=world_size):
        pass
    before = held()
    with connected(model=world_size) as topology:
        for axis in (Axis.MODEL, Axis.DATA):
            ops.all_reduce(torch.ones(3), topology.group(axis))
        during = held()
    descriptors, maps = held()
    assert during[1] > 0
    assert maps == before[1] == 0
    assert descriptors <= before[0]


def test_a_closed_topology_keeps_no_memory_and_no_descriptor() -> None:
    run_distributed(leave_nothing, 2)


def go_without(rank: int, world_size: int, how: str) -> None:
    with ExitStack() as stack:
        if how == "another machine" and rank == 1:
            stack.enter_context(mock.patch.object(shared_memory, "map_file", return_value=None))
        if how == "another network":
            stack.enter_context(mock.patch.object(shared_memory, "network", return_value=rank))
        if how == "no such files":
            stack.enter_context(mock.patch.object(shared_memory, "_memory_file", side_effect=AttributeError))
        topology = stack.enter_context(connected(model=world_size, shared_memory=how != "not wanted"))
        group = model_group(topology)
        assert not ops.shared.exchanges
        assert float(ops.all_reduce(torch.tensor(float(rank)), group)) == sum(range(world_size))


@pytest.mark.parametrize("how", ["another machine", "another network", "no such files", "not wanted"])
def test_all_ranks_go_through_the_network_where_one_has_to(how: str) -> None:
    run_distributed(go_without, 3, how)


def test_a_python_built_for_older_systems_has_such_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    own = shared_memory.create_file(7, 4096)
    assert own is not None
    assert shared_memory.map_file(os.getpid(), own, 7, 4096) is not None
    os.close(own)


def test_a_file_of_another_machine_is_not_taken_for_the_groups() -> None:
    own = shared_memory.create_file(7, 4096)
    assert own is not None
    try:
        assert shared_memory.map_file(os.getpid(), own, 7, 4096) is not None
        assert shared_memory.map_file(os.getpid(), own, 8, 4096) is None  # another number
        assert shared_memory.map_file(os.getpid(), own, 7, 8192) is None  # another size
        assert shared_memory.map_file(os.getpid(), 10**6, 7, 4096) is None  # no such file
        assert shared_memory.map_file(os.getpid(), -1, 7, 4096) is None  # none was made
    finally:
        os.close(own)
