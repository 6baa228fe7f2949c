"""A rank that does not come is named to all that wait for it, with status 70; a pause of all ranks is no hang."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from scaling.core.collectives import ops
from scaling.core.topology import watch
from scaling.core.topology.gate import Gate
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed, run_world
from tests.reference.worlds import connected

PATIENCE = 1.5
STOPPED_SECONDS = 4.5
"""After which a stopped rank is killed, as a launcher would."""


@pytest.mark.parametrize(
    ("rank", "told_after", "ends_after"), [(1, 0.0, 0.0), (1, 0.5, 0.5), (1, 1e9, 1.0), (0, 0.0, 0.1)]
)
def test_a_rank_ends_once_the_others_know_of_the_hang_too_or_have_had_the_time_to(
    rank: int, told_after: float, ends_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that serves the store stays a little longer: the others read from it who has been told."""
    now, store, ended = 0.0, dist.HashStore(), list[tuple[float, str]]()

    def sleep(seconds: float) -> None:
        nonlocal now
        assert now < 10
        now += seconds
        if now >= told_after:
            watching._store.add("told", 1)

    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    watching = watch.Watch(store, rank=rank, world_size=2, gate=Gate(), patience=15.0)
    monkeypatch.setattr(watching, "_end", lambda error: ended.append((now, str(error))))
    if told_after == 0.0:
        watching._store.add("told", 1)
    watching._answer(1, {"kind": "hang", "message": "rank 1 did not come", "present": 2})
    [(seconds, message)] = ended
    assert seconds == pytest.approx(ends_after, abs=0.03)
    assert (message, watching.is_ending) == ("rank 1 did not come", True)


@pytest.mark.parametrize(("begun", "ends"), [(0, True), (3, False)])
def test_a_rank_that_has_nothing_to_save_leaves_without_one_that_never_answers(
    begun: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal has ended the other one before it listened to signals. One that trains waits for the answer."""
    gate = Gate()
    gate.shared, gate.begun, gate.asked = True, begun, "SIGTERM"
    watching = watch.Watch(dist.HashStore(), rank=0, world_size=2, gate=gate, patience=600.0)
    ended: list[object] = []
    monkeypatch.setattr(watching, "_end", ended.append)
    looks = 0
    while not ended and looks < 1000:
        watching._look()
        looks += 1
    assert bool(ended) == ends
    if ends:
        assert str(ended[0]) == "SIGTERM"
        assert looks * watching._pause == pytest.approx(watch._ANSWER_SECONDS + watch._LINGER_SECONDS, abs=0.5)


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("looks at the calls of another thread")


def test_nobody_looks_at_the_calls_of_another_thread_while_nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that often has ended interpreters."""
    monkeypatch.setattr(sys, "_current_frames", refuse)
    monkeypatch.setattr(faulthandler, "dump_traceback", refuse)
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    watching = watch.Watch(dist.HashStore(), rank=0, world_size=1, gate=Gate(), patience=60.0)
    looks = mock.Mock(wraps=watching._clock.look)
    monkeypatch.setattr(watching._clock, "look", looks)
    watching._pause = 0.001
    watching.start()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        torch.manual_seed(1)
        ops.all_reduce(torch.ones(1), None)
        time.sleep(0.001)
    assert all(thread.is_alive() for thread in watching._threads)
    watching.stop()
    assert looks.call_count > 20
    assert not failures


def collective(topology: Topology) -> None:
    ops.all_reduce(torch.ones(1), topology.world)


def direct(topology: Topology) -> None:
    """Do what a user's own program may: this library does not know of the call."""
    time.sleep(PATIENCE / 3)
    dist.barrier()


def message(topology: Topology) -> None:
    topology.agree("any", topology.rank, sum)


def stopped(topology: Topology) -> None:
    subprocess.Popen(["sh", "-c", f"sleep {STOPPED_SECONDS}; kill -KILL {os.getpid()}"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def asleep(topology: Topology) -> None:
    time.sleep(600)


def wait_in(rank: int, world_size: int, folder: Path, does: tuple[Callable[[Topology], None], ...]) -> None:
    """Do what is given for this rank, and leave what a hang is called."""
    threading.excepthook = lambda arguments: (folder / str(rank)).write_text(str(arguments.exc_value)) and None
    with (
        mock.patch.object(watch, "_ANSWER_SECONDS", 1.0),
        connected(data=world_size, process_group_timeout_seconds=PATIENCE) as topology,
    ):
        collective(topology)
        does[rank](topology)


@pytest.mark.parametrize(
    ("does", "named"),
    [
        pytest.param(
            (collective, stopped, message, message),
            "rank 1 did not come within 1.5 s (topology.process_group_timeout_",
            marks=pytest.mark.slow,
        ),
        ((message, asleep), "rank 1 is in the program (test_watch.py, asleep), for "),
        ((stopped, collective), "rank 0 does not react"),
        ((collective, message), "the ranks have waited for each other for 1.5 s"),
        ((asleep, direct), "rank 0 is in the program (test_watch.py, asleep), for "),
    ],
    ids=["stopped", "asleep", "stopped and serving the store", "each other", "a call of the user's own"],
)
def test_who_keeps_the_others_waiting_is_named_to_all(
    does: tuple[Callable[[Topology], None], ...], named: str, tmp_path: Path
) -> None:
    outcomes = run_world(wait_in, len(does), tmp_path, does, timeout=60, grace=STOPPED_SECONDS)
    for rank, outcome in enumerate(outcomes):
        if does[rank] is not stopped:
            assert outcome.exit_code == 70, outcome.report
            assert named in (tmp_path / str(rank)).read_text()


PAUSE = "import os, sys, time; {pids}; time.sleep(0.3); {stop}; time.sleep({seconds}); {go}"


def be_paused(rank: int, world_size: int) -> float:
    """Wait for each other while all ranks are stopped for longer than they would wait."""
    with connected(data=world_size, process_group_timeout_seconds=PATIENCE) as topology:
        pids = topology.gather("pids", os.getpid())
        if pids is not None:
            each = "[os.kill(pid, {number}) for pid in pids]"
            text = PAUSE.format(
                pids=f"pids = {pids}",
                stop=each.format(number=int(signal.SIGSTOP)),
                go=each.format(number=int(signal.SIGCONT)),
                seconds=3 * PATIENCE,
            )
            subprocess.Popen(["python3", "-c", text], start_new_session=True)
        began = time.monotonic()
        while time.monotonic() - began < 3 * PATIENCE:  # the first one waits for the other one, most of the time
            time.sleep(0.05 * rank)
            if topology.broadcast("go on", time.monotonic() - began >= 3 * PATIENCE):
                break
        collective(topology)
        return time.monotonic() - began


def test_ranks_that_are_stopped_and_go_on_together_have_not_waited() -> None:
    assert min(run_distributed(be_paused, 2)) >= 3 * PATIENCE
