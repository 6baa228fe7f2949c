"""One process's view of the run: its place, its device, and the groups it makes with others."""

from __future__ import annotations

import os
from itertools import product
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError, LayoutError
from scaling.core.topology.layout import Axis, Layout
from scaling.core.topology.placement import SAME, SAME_IN_PARTS, Placement, tied
from scaling.core.topology.topology import Topology, choose_device, first_given
from tests.distributed import free_port, run_distributed
from tests.reference.worlds import connected, topology_config

Ranks = tuple[int, ...] | None

LAYOUTS = st.sampled_from(
    [layout for sizes in product(range(1, 4), repeat=4) if (layout := Layout(*sizes)).world_size <= 18]
)


def ranks_of(group: dist.ProcessGroup | None) -> Ranks:
    """Return the global ranks of a group, in the order of their ranks within it, found out by talking."""
    if group is None:
        return None
    said = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(said, torch.tensor([dist.get_rank()]), group=group)
    return tuple(int(rank) for rank in said)


def test_the_first_that_is_given_counts_even_if_it_is_nothing() -> None:
    assert first_given([None, "", "b"]) == ""
    assert first_given([None, None]) is None


def test_a_process_that_works_alone_has_no_groups() -> None:
    topology = Topology.single()
    assert topology.layout == Layout()
    assert topology.device == torch.device("cpu")
    assert all(topology.group(axis) is None and topology.size(axis) == 1 for axis in Axis)
    assert topology.world is None
    assert topology.store is None
    assert topology.subgroup("any", [0]) is None
    assert topology.gather("any", "said") == ["said"]
    assert topology.broadcast("any", "said") == "said"
    assert topology.agree("any", 3, sum) == 3
    topology.close()


def test_sequence_parallelism_needs_more_than_one_model_rank() -> None:
    for model in (1, 2):
        topology = Topology(Layout(model=model), 0, torch.device("cpu"), sequence_parallel=True)
        assert topology.sequence_parallel is (model > 1)


def look_around(rank: int, world_size: int, sizes: dict[str, int]) -> dict[Axis, Ranks]:
    with connected(**sizes) as topology:
        layout = topology.layout
        assert (topology.rank, layout.world_size) == (rank, world_size)
        assert topology.coordinate == layout.coordinate(rank)
        assert topology.world is not None
        assert ranks_of(topology.world) == tuple(range(world_size))
        for axis in Axis:
            assert topology.index(axis) == topology.coordinate.index(axis)
            assert topology.size(axis) == layout.size(axis)
            assert topology.group(axis) is topology.group(axis)
        return {axis: ranks_of(topology.group(axis)) for axis in Axis}


@pytest.mark.parametrize("sizes", [{"data": 2}, {"pipe": 2, "model": 2}, {"pipe": 2, "data": 2, "model": 2}])
def test_the_group_of_an_axis_holds_the_ranks_that_differ_along_it_in_axis_order(sizes: dict[str, int]) -> None:
    layout = Layout(**sizes)
    for rank, found in enumerate(run_distributed(look_around, layout.world_size, sizes)):
        for axis in Axis:
            assert found[axis] == (layout.group(axis, rank) if layout.size(axis) > 1 else None)


@given(LAYOUTS, st.permutations(list(Axis)), st.integers(0, 4))
def test_the_position_on_several_axes_is_that_in_their_joint_group(
    layout: Layout, order: list[Axis], count: int
) -> None:
    axes = tuple(order[:count])
    for rank in range(layout.world_size):
        topology = Topology(layout, rank, torch.device("cpu"))
        group = layout.group(axes, rank)
        assert topology.size(*axes) == len(group)
        assert group[topology.index(*axes)] == rank


JOINT = ((Axis.PIPE, Axis.MODEL), (Axis.PIPE, Axis.DATA), (Axis.DATA, Axis.MODEL), (Axis.PIPE, Axis.DATA, Axis.MODEL))


def join_axes(rank: int, world_size: int) -> list[Ranks]:
    with connected(pipe=2, data=2, model=2) as topology:
        found = [topology.group(*axes) for axes in JOINT]
        for axes, group in zip(JOINT, found, strict=True):
            assert group is not None
            assert group.rank() == topology.index(*axes)
            assert topology.group(*axes) is topology.group(*reversed(axes)) is topology.group(*axes, axes[0]) is group
        # An axis of one rank adds nothing: the group is the same, not another one of the same ranks.
        assert topology.group(Axis.CONTEXT, Axis.DATA) is topology.group(Axis.DATA)
        assert topology.group(Axis.CONTEXT) is topology.group() is None
        return [ranks_of(group) for group in found]


def test_a_joint_group_holds_the_ranks_that_differ_along_its_axes_in_rank_order() -> None:
    layout = Layout(pipe=2, data=2, model=2)
    for rank, found in enumerate(run_distributed(join_axes, 8)):
        assert found == [layout.group(axes, rank) for axes in JOINT]


def make_other_groups(rank: int, world_size: int) -> dict[str, Ranks]:
    kinds: tuple[Literal["activation", "gradient"], ...] = ("activation", "gradient")
    with connected(pipe=2, model=4) as topology:
        links = [topology.link(kind, descending=flag) for kind, flag in product(kinds, (False, True))]
        assert len({id(link) for link in links}) == 4
        assert topology.link("activation", descending=True) is links[1]
        found = {f"link {number}": ranks_of(link) for number, link in enumerate(links)}
        found["copies of 2"] = ranks_of(topology.holders_group(Axis.MODEL, Placement(copies=2)))
        found["copies of 1"] = ranks_of(topology.holders_group(Axis.MODEL, Placement(copies=1)))
        for everywhere in (Placement(copies=4), SAME, SAME_IN_PARTS, Placement(indices=(0, 1, 2, 3))):
            assert topology.holders_group(Axis.MODEL, everywhere) is topology.group(Axis.MODEL)
        found["tie of both"] = ranks_of(topology.holders_group(Axis.PIPE, tied([1, 0])))
        found["tie of the last"] = ranks_of(topology.holders_group(Axis.PIPE, tied([1])))
        assert topology.holders_group(Axis.CONTEXT, SAME) is None
        return found


def test_links_copies_and_ties_join_the_ranks_they_are_for() -> None:
    layout = Layout(pipe=2, model=4)
    for rank, found in enumerate(run_distributed(make_other_groups, 8)):
        column = layout.group(Axis.PIPE, rank)
        first = rank // 2 * 2
        assert found == {
            **{f"link {number}": column for number in range(4)},
            "copies of 2": (first, first + 1),
            "copies of 1": None,
            "tie of both": column,
            "tie of the last": None,
        }


def tie_some_stages(rank: int, world_size: int) -> list[Ranks]:
    with connected(pipe=4, model=2) as topology:
        ties = [tied(pipe_ranks) for pipe_ranks in ((0, 3), (1, 2), (0, 2, 3))]
        groups = [topology.holders_group(Axis.PIPE, tie) for tie in ties]
        assert all(topology.holders_group(Axis.PIPE, tie) is group for tie, group in zip(ties, groups, strict=True))
        return [ranks_of(group) for group in groups]


def test_stages_outside_a_tie_go_on_without_its_members() -> None:
    found = run_distributed(tie_some_stages, 8)
    for model in range(2):
        ends, middle, three = ((model, 6 + model), (2 + model, 4 + model), (model, 4 + model, 6 + model))
        assert [found[2 * pipe + model] for pipe in range(4)] == [
            [ends, None, three],
            [None, middle, None],
            [None, middle, three],
            [ends, None, three],
        ]


class CountingStore:
    """Counts what passes between a rank and its store."""

    def __init__(self, store: dist.Store) -> None:
        self.store = store
        self.calls: list[str] = []
        self.bytes = 0

    def set(self, key: str, value: str) -> None:
        self.calls.append("set")
        self.store.set(key, value)

    def get(self, key: str) -> bytes:
        self.calls.append("get")
        return self.counted(self.store.get(key))

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.calls.append("multi_get")
        return [self.counted(value) for value in self.store.multi_get(keys)]

    def counted(self, value: bytes) -> bytes:
        self.bytes += len(value)
        return value


def tell_each_other(rank: int, world_size: int) -> tuple[list[Any], list[str], int]:
    with connected(data=world_size) as topology:
        assert topology.store is not None
        counting = CountingStore(topology.store)
        with mock.patch.object(topology, "_store", counting):
            gathered = [topology.gather("same", None if rank == 1 else f"{rank} says {n} \x1f ✓") for n in range(3)]
            answers = [*gathered, topology.broadcast("same", f"{rank}"), topology.agree("same", [rank] * 100, total)]
        return answers, counting.calls, counting.bytes


def total(said: list[list[int]]) -> int:
    return sum(map(sum, said))


def test_ranks_speak_to_rank_0_which_answers_all_of_them() -> None:
    results = run_distributed(tell_each_other, 3)
    everything = [[f"0 says {n} \x1f ✓", None, f"2 says {n} \x1f ✓"] for n in range(3)]
    assert results[0][0] == [*everything, "0", 300]
    assert results[1][0] == results[2][0] == [None, None, None, "0", 300]


def test_a_joint_answer_costs_the_others_one_value_each_way() -> None:
    first, *others = run_distributed(tell_each_other, 3)
    assert first[1] == [*["multi_get"] * 3, "set", "multi_get", "set"]
    for _, calls, received in others:
        assert calls == [*["set"] * 3, "get", "set", "get"]
        assert received == len('"0"') + len("300")


def connect_again(rank: int, world_size: int, port: int) -> bool:
    with connected(data=world_size) as first:
        dist.barrier()  # rank 0 takes the store along, from which rank 1 may not have read all it needs
        first.close()
        assert not dist.is_initialized()
        first.close()
    # At the old port, rank 1 might still meet the store of the attempt that it has just left.
    with mock.patch.dict(os.environ, MASTER_PORT=str(port)), connected(model=world_size) as second:
        assert ranks_of(second.world) == (0, 1)
        assert second.group(Axis.DATA) is None
    return not dist.is_initialized()


def test_leaving_destroys_the_groups_and_a_process_may_connect_anew() -> None:
    assert run_distributed(connect_again, 2, free_port()) == [True, True]


def test_a_rank_that_is_done_waits_for_the_others_unless_it_leaves_by_an_error() -> None:
    """Rank 0 may serve the store that they still read from; but after an error they may never come."""
    topology, store = Topology(Layout(data=2), 0, torch.device("cpu")), dist.HashStore()
    store.add("left", 1)
    topology._store = store
    with topology:
        pass
    assert store.add("left", 0) == 2
    topology._store = store
    with pytest.raises(ZeroDivisionError), topology:
        raise ZeroDivisionError
    assert store.add("left", 0) == 2


def connect_with_too_few(rank: int, world_size: int) -> None:
    with connected(data=4):
        pass


def test_another_number_of_processes_than_the_layout_has_is_refused_before_anyone_waits() -> None:
    with pytest.raises(ConfigError, match=r"the launcher started 2 processes, but .* = 4; start 4, or set"):
        run_distributed(connect_with_too_few, 2)


def test_one_process_connects_without_a_network() -> None:
    with Topology.connect(topology_config()) as topology:
        assert topology.world is None
        assert not dist.is_initialized()


def test_the_device_is_what_the_configuration_says_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cpu", 7) == torch.device("cpu")
    assert choose_device("auto", 1) == choose_device("cuda", 1) == torch.device("cuda", 1)
    assert chosen == [1, 1]
    with pytest.raises(LayoutError, match=r"has 2 visible GPUs, but process 2 \(counted from 0\) needs one of its own"):
        choose_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 5) == torch.device("cpu")
    with pytest.raises(LayoutError, match=r"topology.device is cuda, but torch sees no GPU"):
        choose_device("cuda", 0)


def test_on_a_gpu_links_of_the_pipeline_have_streams_of_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    nccl, make = SimpleNamespace(Options=lambda **options: options), mock.Mock()
    make.return_value.size.return_value = 2
    monkeypatch.setattr(dist, "ProcessGroupNCCL", nccl, raising=False)
    monkeypatch.setattr(dist, "new_group", make)
    for device, expected in (("cuda", {"is_high_priority_stream": True}), ("cpu", None)):
        make.reset_mock()
        topology = Topology(Layout(pipe=2, model=2), 0, torch.device("cpu"))
        topology.device, topology._store = torch.device(device), mock.Mock()
        topology.link("activations", descending=False)
        topology.link("gradients", descending=True)
        topology.group(Axis.MODEL)
        assert [call.kwargs["pg_options"] for call in make.call_args_list] == [expected, expected, None]
