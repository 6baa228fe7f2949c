"""Collectives in shared memory: the bits of gloo's, in the order they are called, and mistakes are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core import waiting
from scaling.core.collectives import ops
from scaling.core.collectives.exchanges import SLOT_BYTES, Exchanges
from scaling.core.errors import LayoutError
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.worlds import connected, model_group, random

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shared memory is for Linux")

SIZES = (0, 1, 1000, SLOT_BYTES // 4 - 1, SLOT_BYTES // 4, SLOT_BYTES // 4 + 1, 3 * SLOT_BYTES // 4 + 6)
"""Numbers of float32: around one slot, and several."""

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8)


def exchanges_of(topology: Topology) -> Exchanges:
    return ops.shared.exchanges[model_group(topology)]


def values(size: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (100 * random(size, seed=seed)).to(dtype)


def compare_with_gloo(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        exchanges_of(topology)
        for size in SIZES:
            for dtype in TYPES if size < 2000 else (torch.float32,):
                mine, expected = (values(size, seed=rank, dtype=dtype) for _ in range(2))
                dist.all_reduce(expected, group=group)
                assert torch.equal(ops.all_reduce(mine, group), expected), (size, dtype)
            x = values(2 * size, seed=rank)
            expected = x.clone()
            dist.all_reduce(expected, group=group)
            own = slice(rank * size, (rank + 1) * size)
            assert torch.equal(ops.reduce_scatter(torch.empty(size), x.clone(), group), expected[own])
            inside = x.clone()
            ops.reduce_scatter_start(inside[own], inside, group).wait()
            assert torch.equal(inside[own], expected[own])
        turned = random(6, 4, seed=rank).t()
        assert not turned.is_contiguous()
        both = random(6, 4, seed=0).t() + random(6, 4, seed=1).t()
        assert torch.equal(ops.all_reduce(turned.clone(), group), both)


def test_two_ranks_sum_to_the_bits_of_gloo() -> None:
    run_distributed(compare_with_gloo, 2)


def move_and_sum(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group, exchanges = model_group(topology), exchanges_of(topology)
        for size in SIZES:
            everyone = [values(world_size * size, seed=one) for one in range(world_size)]
            total, highest = everyone[0].clone(), torch.stack(everyone).amax(0)
            for other in everyone[1:]:
                total += other  # in the order of the ranks
            own = slice(rank * size, (rank + 1) * size)
            exchanges.all_reduce(summed := everyone[rank].clone())
            assert torch.equal(summed, total)
            assert torch.equal(ops.all_reduce(everyone[rank].clone(), group, maximum=True), highest)
            exchanges.reduce_scatter(part := torch.empty(size), everyone[rank].clone())
            assert torch.equal(part, total[own])
            whole = torch.full((world_size * size,), torch.nan)
            assert torch.equal(ops.all_gather(whole, total[own].clone(), group), total)
            whole = torch.full((world_size * size,), torch.nan)
            whole[own] = total[own]
            ops.all_gather_start(whole, whole[own], group).wait()
            assert torch.equal(whole, total)
            for source in {0, world_size - 1}:
                assert torch.equal(ops.broadcast(everyone[rank].clone(), group, source=source), everyone[source])


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_sum_in_their_order_and_move_what_they_have(world_size: int) -> None:
    run_distributed(move_and_sum, world_size)


def start_several(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        started = [torch.full((3,), float(rank + number)) for number in range(3)]
        works = [ops.all_reduce_start(x, group) for x in started]
        assert all(work is not None for work in works)
        assert torch.equal(started[0], torch.full((3,), float(rank)))  # nobody has waited
        works[1].wait()  # type: ignore[union-attr]
        assert [float(x[0]) for x in started] == [1.0, 3.0, rank + 2.0]
        assert float(ops.all_reduce(torch.tensor(float(rank)), group)) == 1.0
        assert float(started[2][0]) == 5.0  # what was called before is done before
        for work in works:
            work.wait()  # type: ignore[union-attr]
        assert [float(x[0]) for x in started] == [1.0, 3.0, 5.0]


def test_what_is_started_runs_in_order_when_somebody_waits() -> None:
    run_distributed(start_several, 2)


def differentiate(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        x = torch.ones(3, requires_grad=True)
        y = x * (rank + 1)
        ops.all_reduce(y, group)
        assert torch.equal(y.detach(), torch.full((3,), 3.0))
        exchanges = exchanges_of(topology)
        assert not any(slot.requires_grad for of in exchanges._slots for slot in of)
        with torch.inference_mode():
            assert torch.equal(ops.all_reduce(torch.ones(3), group), torch.full((3,), 2.0))
        assert torch.equal(ops.all_reduce(torch.ones(3), group), torch.full((3,), 2.0))


def test_no_graph_leads_into_the_memory() -> None:
    run_distributed(differentiate, 2)


def call_otherwise(rank: int, world_size: int, how: str) -> str:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "size": (
                lambda: ops.all_reduce(torch.ones(3), group),
                lambda: ops.all_reduce(torch.ones(5), group),
            ),
            "function": (
                lambda: ops.all_reduce(torch.ones(2), group),
                lambda: ops.broadcast(torch.ones(2), group, source=0),
            ),
        }
        with pytest.raises(LayoutError) as caught:
            calls[how][rank]()
        return str(caught.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("size", ("all_reduce of 12 bytes (exchange 1)", "all_reduce of 20 bytes (exchange 1)")),
        ("function", ("all_reduce of 8 bytes (exchange 1)", "broadcast of 8 bytes (exchange 1)")),
    ],
)
def test_ranks_that_do_not_communicate_alike_are_told_of_it(how: str, said: tuple[str, str]) -> None:
    messages = run_distributed(call_otherwise, 2, how)
    for rank, message in enumerate(messages):
        assert f"rank {rank} of it is in {said[rank]}, rank {1 - rank} in {said[1 - rank]}" in message
        assert "let all of them call the same functions in the same order" in message


class Seen(TorchDispatchMode):
    """Writes down the operations that it sees."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def start_before_a_mode(rank: int, world_size: int) -> tuple[list[str], list[str]]:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        x, y = torch.ones(2), torch.ones(3)
        before = ops.all_reduce_start(x, group)
        assert before is not None
        with Seen() as first:
            ops.all_reduce(y, group)
        with Seen() as second:
            within = ops.all_reduce_start(y, group)
            assert within is not None
            within.wait()
        assert float(x[0]) == 2.0
        return first.names, second.names


def test_what_was_started_before_a_mode_is_not_taken_for_what_runs_within() -> None:
    for first, second in run_distributed(start_before_a_mode, 2):
        assert first == ["scaling_shared_memory::all_reduce_"]  # that of y alone
        assert second == ["scaling_shared_memory::all_reduce_"]


def fail_once(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        work = ops.all_reduce_start(torch.ones(3 + rank), model_group(topology))
        assert work is not None
        for _ in range(2):
            with pytest.raises(LayoutError):
                work.wait()


def test_a_call_that_failed_fails_for_everybody_who_waits() -> None:
    run_distributed(fail_once, 2)


def look_at_marks(rank: int, world_size: int) -> bool:
    with connected(model=world_size) as topology:
        group, marks, seen = model_group(topology), waiting.marks_of_this_thread(), []
        real = Exchanges._all_reduce

        def looking(self: Exchanges, x: Tensor, maximum: bool) -> None:
            seen.append(marks.innermost is not None)
            real(self, x, maximum)

        with mock.patch.object(Exchanges, "_all_reduce", looking):
            ops.shared.exchanges[group].all_reduce(torch.ones(2))  # as compiled code calls it
        return all(seen) and len(seen) == 1


def test_a_collective_of_compiled_code_is_marked_as_waiting() -> None:
    assert run_distributed(look_at_marks, 2) == [True, True]
