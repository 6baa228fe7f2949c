"""Asked to leave, a run leaves after the micro-batch it is at, whatever it is doing, on all ranks alike."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import AskedToLeave, ExitStatus
from scaling.core.pipeline.actions import Action
from scaling.core.pipeline.lowering import lower
from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.simulate import simulate
from scaling.core.trainer.hooks import TrainerHook
from tests.core.trainer.moments import Acting, SlowPoints, ask, cases, ranks_of, stay, stay_and_be_asked, train_until
from tests.core.trainer.regression import make_trainer
from tests.core.trainer.test_trainer import saved_steps
from tests.distributed import run_distributed, run_world
from tests.reference.worlds import connected

STEP = 100
"""Micro-batches of a step: two seconds and more."""


def leave(rank: int, world_size: int, layout: Mapping[str, int], phase: str, directory: Path) -> tuple[int, int, bool]:
    """Train until the last rank is asked to leave in a phase; return where it stands."""

    def be_asked() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    training, validation = (SlowPoints(400, act=be_asked, seconds=0.02) for _ in range(2))
    if rank == world_size - 1:
        training.acts_at = STEP // layout.get("data", 1) + 5 if phase == "training" else None
        validation.acts_at = 5
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


@pytest.mark.parametrize(
    ("phase", "layout"),
    [
        ("training", {"data": 2}),
        ("evaluation", {"pipe": 2}),
        pytest.param("training", {"pipe": 2}, marks=pytest.mark.slow),
        pytest.param("evaluation", {"data": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ranks_leave_in_the_middle_of_a_step_or_an_evaluation(
    phase: str, layout: dict[str, int], tmp_path: Path
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
    training = SlowPoints(400, seconds=0.0)
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


ENDS_AT_ONCE = ("loading", "first data")
"""Moments at which there is nothing to save."""
STAYS = ("loading", "first data", "data", "evaluation data")
MOMENTS = ("training", "evaluation", "saving", *STAYS)
FAST = [
    *(("first data", layout) for layout in ({"data": 1}, {"pipe": 2})),
    *(("data", layout) for layout in ({"data": 2}, {"pipe": 2})),
    *(("evaluation data", layout) for layout in ({"data": 1}, {"data": 2})),
]


def leave_at(rank: int, world_size: int, moment: str, layout: Mapping[str, int], directory: Path) -> int:
    """Train until the last rank is asked to leave at a moment; return the step that was reached."""
    act = stay_and_be_asked if moment in STAYS else ask
    trainer = train_until(moment, lambda: act(directory), layout, directory)
    assert trainer.preempted is not None
    return trainer.state.step


@pytest.mark.parametrize(("moment", "layout"), cases(MOMENTS, FAST))
def test_a_run_leaves_soon_whatever_it_is_doing(moment: str, layout: Mapping[str, int], tmp_path: Path) -> None:
    """Data that do not come any more, a step of 0.1 s that never ends: five seconds later all is saved and over."""
    if moment == "loading":
        make_trainer(save_dir=tmp_path, train_iterations=1)[0].fit()
    before = saved_steps(tmp_path)
    outcomes = run_world(leave_at, ranks_of(layout), moment, layout, tmp_path, timeout=60, grace=20)
    asked = float((tmp_path / "asked").read_text())
    assert max(outcome.time for outcome in outcomes) - asked < 5
    if moment in ENDS_AT_ONCE:
        for outcome in outcomes:
            assert outcome.exit_code == ExitStatus.PREEMPTED or isinstance(outcome.error, AskedToLeave), outcome.report
        assert saved_steps(tmp_path) == before
    else:
        assert not any(outcome.report for outcome in outcomes), "\n".join(one.report for one in outcomes)
        [step] = {outcome.value for outcome in outcomes}
        assert step >= 1
        assert saved_steps(tmp_path)[-1] == step


def leave_a_stuck_worker(rank: int, world_size: int, layout: Mapping[str, int], directory: Path) -> int:
    """Be asked to leave, as all ranks are, while a worker of the last one reads for ever in the second step."""
    asks = Acting("training", threading.Timer(0.5, ask, (directory,)).start)
    step = train_until("data", stay, layout, directory, workers=1, hooks=[asks]).state.step
    for worker in multiprocessing.active_children():  # until this process ends, which the pool keeps
        worker.kill()
    return step


@pytest.mark.parametrize("layout", [{"data": 1}, pytest.param({"data": 2}, marks=pytest.mark.slow)], ids=str)
def test_a_worker_that_is_stuck_is_not_waited_for(layout: Mapping[str, int], tmp_path: Path) -> None:
    outcomes = run_world(leave_a_stuck_worker, ranks_of(layout), layout, tmp_path, timeout=60)
    assert [outcome.value for outcome in outcomes] == [1] * len(outcomes), "\n".join(one.report for one in outcomes)
    assert max(outcome.time for outcome in outcomes) - float((tmp_path / "asked").read_text()) < 5
    assert saved_steps(tmp_path) == [1]
