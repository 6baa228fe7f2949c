"""Data workers end with the training process, however it dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from scaling.core.data.loader import DataLoader
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


def test_workers_do_not_outlive_a_training_process_that_was_killed(tmp_path: Path) -> None:
    (ended,) = run_world(killed_while_reading, 1, tmp_path / "workers")
    assert ended.exit_code == -signal.SIGKILL, ended.report
    workers = [int(word) for word in (tmp_path / "workers").read_text().split()]
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_running, workers)), "a worker outlived the training process")
