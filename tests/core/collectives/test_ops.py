"""Plain collectives: what each leaves where."""

from __future__ import annotations

import torch

from scaling.core.collectives import ops
from tests.distributed import run_distributed
from tests.reference.compare import close
from tests.reference.worlds import connected, model_group, random


def do_each(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        everyone = [random(2 * world_size, 3, seed=r) for r in range(world_size)]
        mine, total = everyone[rank], torch.stack(everyone).sum(0)

        summed = ops.all_reduce(given := mine.clone(), group)
        assert summed is given
        close(summed, total)
        highest = ops.all_reduce(mine.clone(), group, maximum=True)
        close(highest, torch.stack(everyone).amax(0))
        later = mine.clone()
        work = ops.all_reduce_start(later, group)
        assert work is not None
        work.wait()
        close(later, total)

        own = slice(2 * rank, 2 * rank + 2)
        close(ops.reduce_scatter(torch.empty(2, 3).double(), mine, group), total[own])
        inside = mine.clone()  # the optimizer lets the result replace the rank's own part of the input
        ops.reduce_scatter_start(inside[own], inside, group).wait()
        close(inside[own], total[own])

        gathered = torch.empty(2 * world_size, 3, dtype=torch.float64)
        close(ops.all_gather(gathered, everyone[0][own].clone(), group), everyone[0])
        inside = torch.full((2 * world_size, 3), torch.nan, dtype=torch.float64)
        inside[own] = everyone[0][own]
        ops.all_gather_start(inside, inside[own], group).wait()
        close(inside, everyone[0])

        source = world_size - 1
        close(ops.broadcast(mine.clone(), group, source=source), everyone[source])

        for to in {0, source}:
            stacked = ops.gather(mine.t(), group, to=to)  # not contiguous
            assert (stacked is not None) == (rank == to)
            if stacked is not None:
                close(stacked, torch.stack(everyone).movedim(1, 2))

        for dim in (0, 1, -1):
            close(ops.gather_slices(mine, group, dim=dim), torch.cat(everyone, dim=dim))
        wide = torch.cat(everyone, dim=1)
        expected = (wide * world_size).chunk(world_size, dim=1)[rank]
        close(ops.scatter_sum(wide, group, dim=1), expected)
        close(ops.scatter_sum(wide.t(), group, dim=-2), expected.t())


def test_each_collective_leaves_what_it_says() -> None:
    run_distributed(do_each, 2)
    run_distributed(do_each, 4)


def pass_messages_on(rank: int, world_size: int) -> list[float]:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        sends = [
            ops.send_start(torch.tensor([float(rank), float(k)]), group, to=(rank + 1) % world_size) for k in range(3)
        ]
        came = [ops.receive(torch.empty(2), group, source=(rank - 1) % world_size) for _ in range(3)]
        for work in sends:
            if work is not None:
                work.wait()
        return torch.cat(came).tolist()


def test_messages_arrive_in_the_order_of_the_sends() -> None:
    came = run_distributed(pass_messages_on, 3)
    assert came == [[float(value) for k in range(3) for value in ((rank - 1) % 3, k)] for rank in range(3)]


def test_a_group_of_none_is_one_rank() -> None:
    x = torch.ones(3)
    assert ops.all_reduce(x, None) is x
    assert ops.all_reduce_start(x, None) is None
    assert ops.broadcast(x, None, source=0) is x
    alone = ops.gather(x, None, to=0)
    assert alone is not None
    assert torch.equal(alone, x.unsqueeze(0))
    assert x.eq(1).all()


def compare_reduction_orders(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        for length in (64, 64 * 37, 2**16):
            mine = random(world_size * length, seed=rank, dtype=torch.float32)
            whole = ops.all_reduce(mine.clone(), group)
            part = ops.reduce_scatter(torch.empty(length), mine, group)
            assert torch.equal(part, whole[rank * length : (rank + 1) * length])


def test_two_ranks_sum_to_the_same_bits_whether_reduced_or_reduce_scattered() -> None:
    run_distributed(compare_reduction_orders, 2)
