"""Data workers end with the training process, however it dies."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path

from scaling.core.data.loader import DataLoader
from scaling.core.data.read_ahead import _Positions
from tests.core.data.datasets import Numbers
from tests.distributed import run_world
from tests.processes import is_running, wait_until


def killed_while_reading(rank: int, world_size: int, note: Path) -> None:
    """Start two workers, note their process numbers, and die without a chance to stop them."""
    batches = DataLoader(
        Numbers(50),
        seed=1,
        data_parallel_size=1,
        data_parallel_rank=0,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        num_workers=2,
    )
    workers = {int(next(batches).inputs["process"]) for _ in range(8)}
    note.write_text(" ".join(map(str, workers)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_asked_for_and_did_not_come_is_asked_for_again_once() -> None:
    """However often workers die: each time those that follow begin with the first position not delivered."""
    positions = _Positions()
    positions.rest = (range(number, number + 1) for number in range(6))
    for delivered in range(4):
        asked = [wanted.start for wanted in islice(positions, 3)]
        assert asked == [wanted.start for wanted in positions.asked] == [delivered, delivered + 1, delivered + 2]
        positions.asked.popleft()
    assert [wanted.start for wanted in positions] == [4, 5]


def test_workers_do_not_outlive_a_training_process_that_was_killed(tmp_path: Path) -> None:
    (ended,) = run_world(killed_while_reading, 1, tmp_path / "workers")
    assert ended.exit_code == -signal.SIGKILL, ended.report
    workers = [int(word) for word in (tmp_path / "workers").read_text().split()]
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_running, workers)), "a worker outlived the training process")
