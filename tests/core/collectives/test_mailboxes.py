"""Messages in shared memory: they arrive in order, the sender goes on at once, and nothing piles up."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from scaling.core.collectives import mailboxes, ops
from scaling.core.collectives.mailboxes import Mailboxes
from scaling.core.errors import ScheduleError, StorageError
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed, run_world
from tests.reference.worlds import connected, random

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shared memory is for Linux")

NUMBERS = (3, 0, 5000, 1, 300_000, 4)
TYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8)


def boxes_of(topology: Topology) -> Mailboxes:
    group = topology.link("activation", descending=False)
    assert group is not None
    return ops.shared.mailboxes[group]


def pass_around(rank: int, world_size: int) -> None:
    with connected(pipe=world_size) as topology:
        boxes = boxes_of(topology)
        for _ in range(3):
            for number in NUMBERS:
                for dtype in TYPES:
                    for to in boxes.memory.others:
                        sent = (10 * random(number, 1, seed=world_size * rank + to)).to(dtype)
                        boxes.send(sent, to)
                        sent.zero_()  # it may be changed at once
            for number in NUMBERS:
                for dtype in TYPES:
                    works, came = [], {other: torch.ones(number, 1, dtype=dtype) for other in boxes.memory.others}
                    for other, x in came.items():
                        works.append(boxes.receive_later(x, other))
                    for work in reversed(works):
                        work.wait()
                    for other, x in came.items():
                        assert torch.equal(x, (10 * random(number, 1, seed=world_size * other + rank)).to(dtype))


@pytest.mark.parametrize("world_size", [2, 3])
def test_messages_of_all_sizes_and_types_arrive_in_order_though_nobody_waits_with_sending(world_size: int) -> None:
    run_distributed(pass_around, world_size)


def many(rank: int, world_size: int) -> tuple[int, int]:
    with connected(pipe=world_size) as topology, mock.patch.object(mailboxes, "MOST_MESSAGES", 4):
        boxes = boxes_of(topology)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            if rank == 0:
                boxes.send(torch.full((number % 7 + 1,), float(number)), 1)
            else:
                came = torch.empty(number % 7 + 1)
                boxes.receive_later(came, 0).wait()
                assert torch.equal(came, torch.full_like(came, float(number)))
        return boxes._to[1 - rank].files, len(os.listdir("/proc/self/fd")) - before


def test_buffers_are_used_again_and_a_full_mailbox_waits() -> None:
    (made, descriptors), (none, opened) = run_distributed(many, 2)
    assert made == 1
    assert descriptors <= 2 * made  # a mapping holds one
    assert none == 0
    assert opened <= made


def grow(rank: int, world_size: int) -> tuple[int, int]:
    with connected(pipe=world_size) as topology:
        boxes = boxes_of(topology)
        for number in range(150):
            length = 1000 * (number + 1)
            if rank == 0:
                boxes.send(torch.ones(length), 1)
                boxes.receive_later(torch.empty(1), 1).wait()
            else:
                boxes.receive_later(torch.empty(length), 0).wait()
                boxes.send(torch.ones(1), 0)
        return boxes._to[1 - rank].files, len(os.listdir("/proc/self/fd"))


def test_messages_of_ever_other_sizes_take_few_files() -> None:
    (files, _), _ = run_distributed(grow, 2)
    assert files <= 9  # powers of two from a page to 600 kB


def run_ahead(rank: int, world_size: int) -> int:
    def resident() -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssShmem")]
        return int(line.split()[1]) // 1024

    with connected(pipe=world_size) as topology:
        boxes, world = boxes_of(topology), topology.world
        before = resident()
        if rank == 0:
            for _ in range(100):
                boxes.send(torch.ones(2**18), 1)
        ops.all_reduce(torch.zeros(1), world)
        if rank == 1:
            for _ in range(100):
                boxes.receive_later(torch.empty(2**18), 0).wait()
        ops.all_reduce(torch.zeros(1), world)
        for _ in range(100):
            if rank == 0:
                boxes.send(torch.ones(2**18), 1)
            else:
                boxes.receive_later(torch.empty(2**18), 0).wait()
            ops.all_reduce(torch.zeros(1), world)
        return resident() - before


def test_a_sender_that_ran_ahead_gives_the_memory_back() -> None:
    assert max(run_distributed(run_ahead, 2)) < 20  # MiB; a hundred were under way


def send_another_size(rank: int, world_size: int) -> str:
    with connected(pipe=world_size) as topology:
        boxes = boxes_of(topology)
        if rank == 0:
            boxes.send(torch.ones(3), 1)
            return ""
        with pytest.raises(ScheduleError) as caught:
            boxes.receive_later(torch.ones(4), 0).wait()
        return str(caught.value)


def test_a_message_of_another_size_is_refused() -> None:
    _, said = run_distributed(send_another_size, 2)
    assert said.startswith("rank 0 of a group sent a message of 12 bytes where rank 1 expects one of 16")


def lose_the_sender(rank: int, world_size: int) -> None:
    with connected(pipe=world_size) as topology:
        boxes = boxes_of(topology)
        if rank == 0:
            os._exit(3)
        boxes.receive_later(torch.ones(4), 0).wait()


def test_a_sender_whose_process_has_ended_is_not_waited_for() -> None:
    gone, left = run_world(lose_the_sender, 2, grace=20)
    assert gone.exit_code == 3
    assert left.is_consequence
    assert "the process of rank 0 of a group of 2 has ended" in str(left.error)


def lose_a_message(rank: int, world_size: int) -> None:
    with connected(pipe=world_size) as topology:
        boxes = boxes_of(topology)
        if rank == 0:
            boxes.send(torch.ones(4), 1)
        else:
            with mock.patch.object(mailboxes, "map_file", return_value=None):
                boxes.receive_later(torch.ones(4), 0).wait()


def test_a_sender_that_ends_before_its_message_is_opened_is_the_cause() -> None:
    _, left = run_world(lose_a_message, 2, grace=20)
    assert left.is_consequence
    assert "a message of rank 0 of a group of 2 cannot be opened" in str(left.error)


def find_no_memory(rank: int, world_size: int) -> str:
    with connected(pipe=world_size) as topology, mock.patch.object(mailboxes, "_BUFFERS", 1):
        boxes = boxes_of(topology)
        if rank == 1:
            boxes.receive_later(torch.empty(3), 0).wait()
            boxes.receive_later(torch.empty(3), 0).wait()
            return ""
        boxes.send(torch.ones(3), 1)
        with mock.patch.object(mailboxes, "create_file", return_value=None):
            boxes.send(torch.ones(3), 1)  # the buffer comes back
            with pytest.raises(StorageError) as caught:
                boxes.send(torch.ones(5000), 1)
        return str(caught.value)


def test_a_sender_without_memory_waits_for_a_buffer_and_says_what_is_missing() -> None:
    said, _ = run_distributed(find_no_memory, 2)
    assert "for a message of 20000 bytes" in said
    assert "topology.shared_memory" in said
