"""Asked to leave, a run leaves after the micro-batch it is at, whatever it is doing, on all ranks alike."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from scaling.core.data.types import MicroBatch
from scaling.core.pipeline.actions import Action
from scaling.core.pipeline.lowering import lower
from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.simulate import simulate
from scaling.core.trainer.hooks import TrainerHook
from tests.core.trainer.regression import Points, make_trainer
from tests.core.trainer.test_trainer import saved_steps
from tests.distributed import run_distributed
from tests.reference.worlds import connected

STEP = 100
"""Micro-batches of a step: two seconds and more."""


class Slow(Points):
    """Takes its time for each micro-batch, and asks its process to leave at one of them."""

    def __init__(self, length: int, *, asks_at: int | None = None, seconds: float = 0.02) -> None:
        super().__init__(length)
        self.asks_at = asks_at
        self.seconds = seconds
        self.read = 0

    def collate(
        self, samples: Sequence[tuple[Tensor, Tensor]], positions: Sequence[int], valid: Sequence[bool]
    ) -> MicroBatch:
        self.read += 1
        if self.read == self.asks_at:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.seconds)
        return super().collate(samples, positions, valid)


def leave(rank: int, world_size: int, layout: Mapping[str, int], phase: str, directory: Path) -> tuple[int, int, bool]:
    """Train until the last rank is asked to leave in a phase; return where it stands."""
    training, validation = Slow(400), Slow(400)
    if rank == world_size - 1:
        training.asks_at = STEP // layout.get("data", 1) + 5 if phase == "training" else None
        validation.asks_at = 5
    with connected(**layout, global_batch_size=STEP, micro_batch_size=1) as topology:
        trainer, metrics = make_trainer(
            topology,
            training=training,
            validation=validation,
            save_dir=directory,
            train_iterations=50,
            log_interval=50,
            eval_interval=None if phase == "training" else 1,
            micro_batch_size=1,
            global_batch_size=STEP,
        )
        trainer.fit()
        return trainer.state.step, len(metrics.series("evaluation/loss")), trainer.preempted is not None


@pytest.mark.parametrize("layout", [{"data": 2}, {"pipe": 2}], ids=str)
@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_ranks_leave_in_the_middle_of_a_step_or_an_evaluation(
    layout: dict[str, int], phase: str, tmp_path: Path
) -> None:
    found = run_distributed(leave, 2, layout, phase, tmp_path)
    assert set(found) == {(1, 0, True)}  # not a step more, and no evaluation of a part of the data
    assert saved_steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "schedule", [GPipe(), OneFOneB(), Interleaved1F1B(2)], ids=lambda schedule: type(schedule).__name__
)
def test_a_schedule_without_its_last_micro_batches_is_a_schedule(schedule: Schedule) -> None:
    ranks, micro_batches = 4, 8
    lists: list[Sequence[Action]] = [lower(schedule, rank, ranks, micro_batches) for rank in range(ranks)]
    for last in range(micro_batches):
        simulate([[action for action in actions if action.micro_batch <= last] for actions in lists])


def test_a_process_that_waits_for_data_leaves_at_once(tmp_path: Path) -> None:
    """Nothing of the step is lost that another rank could need: what came before it is saved."""
    training = Slow(400, seconds=0.0)
    trainer, _ = make_trainer(training=training, save_dir=tmp_path, train_iterations=50, log_interval=50)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))

    class Stuck(TrainerHook):
        def before_step(self, view: Any) -> None:
            if view.state.step == 3:
                training.seconds = 600.0
                timer.start()

    trainer.hooks = (Stuck(),)
    began = time.monotonic()
    trainer.fit()
    assert time.monotonic() - began < 60
    assert (trainer.state.step, trainer.preempted) == (3, "SIGTERM")
    assert saved_steps(tmp_path) == [3]
