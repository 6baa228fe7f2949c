"""The whole job is ended at random moments, again and again, and comes to what it would have come to anyway."""

from __future__ import annotations

import json
import operator
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scaling.core import ExitStatus, LaunchContext, TrainerHook, TrainerView, run_training
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import train as program
from scaling.transformer.config.root import TransformerConfig
from tests.distributed import run_world
from tests.faults.engine import TIMEOUT, TWO, Settings, Source, launch, make_source, nested, texts
from tests.faults.matrix import differences

ENDLESS: Settings = {"trainer.train_iterations": 10**6, "trainer.keep_last_checkpoints": 2}
KILLED_SOONER: Settings = {"trainer.save_interval": 1}
LONGEST = 10.0
"""Seconds after which a rank is interrupted at the latest, although its first step may have been held up."""


class Clocked(TrainerHook):
    """A hook that calls `action` before the second step since the start, with what the first one took in seconds."""

    def __init__(self, action: Callable[[TrainerView, float], object]) -> None:
        self._action = action
        self._times: list[float] = []

    def before_step(self, trainer: TrainerView) -> None:
        self._times.append(time.monotonic())
        if len(self._times) == 2:
            self._action(trainer, self._times[1] - self._times[0])


def train(settings: Settings, action: Callable[[TrainerView, float], object]) -> ExitStatus:
    """Be one rank of the training program, and do something before its second step."""
    with mock.patch.object(program, "run_training", partial(run_training, hooks=(Clocked(action),))):
        return program.train(TransformerConfig.from_dict(nested(settings)), LaunchContext.from_environment())


def killed(rank: int, world_size: int, settings: Settings, steps: float) -> None:
    """Train until the kernel ends both ranks at the same moment, `steps` times the duration of a step from now.

    The alarm is not handled: it ends the process as SIGKILL does, without a trace.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def arm(trainer: TrainerView, seconds: float) -> None:
        topology = trainer.learner.topology
        moment = topology.broadcast("moment", time.monotonic() + min(LONGEST, steps * seconds))
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, moment - time.monotonic()))

    train(settings, arm)


def terminated(
    rank: int, world_size: int, settings: Settings, ranks: tuple[int, ...], steps: float, seconds: float | None
) -> ExitStatus:
    """Train until SIGTERM comes to some ranks: `seconds` after the start, or so many steps later."""
    timers = []

    def ask(delay: float) -> None:
        timers.append(threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[0].start()

    if rank in ranks and seconds is not None:
        ask(seconds)
    try:
        return train(
            settings, lambda trainer, step: ask(min(LONGEST, steps * step)) if rank in ranks and not timers else None
        )
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()


def newest_step(save_dir: Path) -> int:
    """Return the step of the newest checkpoint; every one that has a name must be intact."""
    search = find_newest(save_dir)
    assert search.rejected == ()
    return 0 if search.found is None else search.found.step


def finish(source: Source, settings: dict[str, Any]) -> None:
    """Train two steps more than there are, and compare with a run that never stopped."""
    save_dir = Path(settings["trainer.save_dir"])
    last = newest_step(save_dir) + 2
    ending = {"trainer.train_iterations": last, "trainer.save_interval": None}
    found = launch({**settings, **ending})
    wanted = launch(source.settings(TWO, ending))
    assert found.state is not None, found.message
    assert wanted.state is not None, wanted.message
    assert found.state["step"] == last
    assert not differences(found.state, wanted.state)
    assert not [path.name for path in save_dir.iterdir() if path.name.startswith(".")]


def kill_again_and_again(source: Source, folder: Path, moments: int) -> None:
    generator = random.Random(moments)
    settings = source.settings(TWO, ENDLESS, KILLED_SOONER, {"trainer.save_dir": str(folder / "checkpoints")})
    last = 0
    for number in range(moments):
        asynchronous = {"trainer.save_async": number % 2 == 1}
        outcomes = run_world(
            killed, 2, {**settings, **asynchronous}, generator.uniform(0, 2), timeout=TIMEOUT, grace=0.3
        )
        assert any(one.exit_code == -signal.SIGALRM for one in outcomes), [one.report for one in outcomes]
        step = newest_step(folder / "checkpoints")
        assert step >= last
        last = step
    assert last > 0
    finish(source, settings)


def terminate_again_and_again(source: Source, folder: Path, moments: int) -> None:
    generator = random.Random(moments)
    logs = folder / "logs"
    evaluated = {
        "data.validation_data_prefixes": [str(make_source(folder, texts(12), tokenizer=source.tokenizer).prefix)],
        "trainer.eval_interval": 3,
        "trainer.eval_iterations": 2,
        "trainer.save_interval": 4,
        "logger.log_dir": str(logs),
    }
    settings = source.settings(TWO, ENDLESS, evaluated, {"trainer.save_dir": str(folder / "checkpoints")})
    for number in range(moments):
        ranks = [(0, 1), (0,), (1,)][number % 3]
        # While the processes start and meet, or some steps, evaluations and saves later.
        seconds = generator.uniform(0, 0.5) if number % 5 == 4 else None
        steps = generator.uniform(0, 8)
        # A rank that was asked before it listened leaves one that waits for it; later, all come to an end.
        grace = 60.0 if seconds is None else 0.3
        outcomes = run_world(terminated, 2, settings, ranks, steps, seconds, timeout=TIMEOUT, grace=grace)
        step = newest_step(folder / "checkpoints")
        ended = [(one.exit_code, one.value, one.report[:300]) for one in outcomes]
        preempted = [one.value == ExitStatus.PREEMPTED for one in outcomes]
        signalled = [one.exit_code == -signal.SIGTERM for one in outcomes]
        if any(preempted):  # a rank that had saved already, because the other was asked first, may die of the signal
            assert all(map(operator.or_, preempted, signalled)), ended
            assert step == last_logged(logs), ended
        else:  # it came before anyone listened, so before the first step
            assert seconds is not None, ended
            assert any(signalled), ended
            assert step >= last_logged(logs) - 1, ended
    unlogged = {"logger.log_dir": None, "data.validation_data_prefixes": None, "trainer.eval_interval": None}
    finish(source, {**settings, **unlogged, "trainer.eval_iterations": None})


def last_logged(logs: Path) -> int:
    """Return the last step that metrics.jsonl knows of."""
    path = logs / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def test_a_job_killed_at_any_moment_goes_on_as_if_nothing_had_happened(source: Source, tmp_path: Path) -> None:
    kill_again_and_again(source, tmp_path, 4)


@pytest.mark.slow
def test_a_job_killed_at_a_hundred_moments_goes_on_as_if_nothing_had_happened(source: Source, tmp_path: Path) -> None:
    kill_again_and_again(source, tmp_path, 100)


def test_a_job_asked_to_leave_at_any_moment_saves_first(source: Source, tmp_path: Path) -> None:
    terminate_again_and_again(source, tmp_path, 5)


@pytest.mark.slow
def test_a_job_asked_to_leave_at_fifty_moments_saves_first(source: Source, tmp_path: Path) -> None:
    terminate_again_and_again(source, tmp_path, 50)
