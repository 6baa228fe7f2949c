"""Saves that are killed at every step of the protocol, and at random moments: real processes, no clean-up."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from torch._C._distributed_c10d import FileStore

from scaling.core.checkpoint import communicator
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator, StoreCommunicator
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.search import find_newest
from scaling.core.errors import ScalingError
from tests.core.checkpoint.virtual import Cut, RankState, global_state, loads_exactly, on_ranks, save_cut
from tests.distributed import run_world
from tests.processes import is_running

POINTS = [
    *("before_data", "mid_data", "after_data", "before_manifest", "mid_manifest", "before_rename"),
    *("after_rename", "during_retention"),
]
CUT = Cut(data=2, zero=True)


def job(rank: int, world_size: int, directory: Path, step: int, asynchronous: bool) -> None:
    """A whole job in one process: its two ranks are threads, so that the kill takes both at the same instant."""
    os.environ.pop("RANK")
    save_cut(
        directory, step, CUT, global_state(step + 100), retention=Retention(keep_last=2), asynchronous=asynchronous
    )


def half(rank: int, world_size: int, directory: Path) -> str:
    """One rank of a job whose ranks are processes. Its patience ends with the other one's life, not sooner."""
    store = FileStore(str(directory / "store"), world_size)
    store.set(f"process/{rank}", str(os.getpid()))
    other = int(store.get(f"process/{1 - rank}"))
    hours = itertools.count()

    def monotonic() -> float:
        """Let an hour pass with each look at the clock, once the other rank is gone."""
        return time.monotonic() + (0.0 if is_running(other) else 3600.0 * next(hours))

    ranks = StoreCommunicator(store, rank, world_size)
    held = RankState(CUT, rank).fill(global_state(2))
    with mock.patch.object(communicator, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep)):
        try:
            Checkpointer(directory / "runs", communicator=ranks).save(2, held.tensors, {})
        except ScalingError as error:
            return str(error)
    return ""


def endless(rank: int, world_size: int, directory: Path, unharmed: int, seconds: float, asynchronous: bool) -> None:
    """Save one step after the other; the kernel ends the process, wherever it is, `seconds` after `unharmed` saves.

    Step n holds the state of seed n. The alarm is not handled: it ends the process as SIGKILL does, without a trace.
    """
    os.environ.pop("RANK")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def save_on(ranks: Communicator) -> None:
        held = RankState(CUT, ranks.rank)
        checkpointer = Checkpointer(
            directory, communicator=ranks, retention=Retention(keep_last=2), asynchronous=asynchronous
        )
        found = checkpointer.find().found
        first = 0 if found is None else found.step
        for step in itertools.count(first):
            if ranks.rank == 0 and step == first + unharmed:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            checkpointer.save(step, held.fill(global_state(step)).tensors, {"step": step})

    on_ranks(CUT.world_size, save_on)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", [2, 3], ids=["again", "next"])
def test_a_job_killed_anywhere_in_a_save_loads_a_complete_step_and_saves_again(
    point: str, rank: int, step: int, tmp_path: Path
) -> None:
    for earlier in (1, 2):
        save_cut(tmp_path, earlier, CUT, global_state(earlier))
    fault = {"SCALING_FAULT": f"save.{point}@{rank}=kill"}
    (outcome,) = run_world(job, 1, tmp_path, step, rank == 1, environment=fault)
    assert outcome.exit_code == -signal.SIGKILL

    newest = find_newest(tmp_path).require()
    written = newest.manifest.scalars == {"step": step, "rank": 0} and loads_exactly(
        newest.path, Cut(model=2), global_state(step + 100)
    )
    untouched = newest.step == 2 and loads_exactly(newest.path, Cut(model=2), global_state(2))
    assert written or untouched
    if POINTS.index(point) < POINTS.index("before_rename"):
        assert untouched or rank == 1
    if point in ("after_rename", "during_retention"):
        assert written

    save_cut(tmp_path, step, CUT, global_state(9))
    assert loads_exactly(tmp_path, Cut(), global_state(9))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_rank_dies_the_other_says_so_and_the_next_job_is_not_blocked(rank: int, tmp_path: Path) -> None:
    save_cut(tmp_path / "runs", 1, CUT, global_state(1))
    fault = {"SCALING_FAULT": f"save.mid_data@{rank}=kill"}
    outcomes = run_world(half, 2, tmp_path, environment=fault, grace=60)
    assert outcomes[rank].exit_code == -signal.SIGKILL
    assert f"rank {rank} did not take part" in outcomes[1 - rank].value
    assert loads_exactly(tmp_path / "runs", Cut(), global_state(1))
    save_cut(tmp_path / "runs", 2, CUT, global_state(2))
    assert loads_exactly(tmp_path / "runs", Cut(), global_state(2))


def kill_at_random(directory: Path, count: int) -> None:
    generator = random.Random(count)
    began = time.monotonic()
    save_cut(directory, 0, CUT, global_state(0))
    duration = min(0.2, time.monotonic() - began)  # of a save on this machine as it is now, but for a long pause
    last = 0
    for number in range(count):
        seconds = max(1e-4, generator.uniform(0, 5) * duration)
        unharmed = (0, 0, 2, 2)[number % 4]  # with the first one, the step before is saved again
        (outcome,) = run_world(endless, 1, directory, unharmed, seconds, number % 2 == 0)
        assert outcome.exit_code == -signal.SIGALRM, outcome.report
        search = find_newest(directory)
        newest = search.require()
        assert search.rejected == ()
        assert newest.step >= last
        assert newest.manifest.scalars in ({"step": newest.step}, {"step": 0, "rank": 0})
        assert loads_exactly(newest.path, Cut(model=2), global_state(newest.step))
        last = newest.step
    assert last > 0


def test_a_job_killed_at_any_moment_resumes_from_a_complete_step(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 8)


@pytest.mark.slow
def test_a_job_killed_at_a_hundred_moments_resumes_from_a_complete_step(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 100)
