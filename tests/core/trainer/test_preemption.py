"""Signals ask a run to leave: the first is kept for the next step, the second ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from scaling.core.trainer import preemption
from scaling.core.trainer.preemption import Preemption
from tests.core.trainer.regression import make_trainer
from tests.distributed import run_distributed
from tests.reference.worlds import connected

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers_are_left_as_they_were() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == former


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_flag(number: signal.Signals) -> None:
    with Preemption() as preempted:
        assert not preempted()
        assert preempted.reason is None
        os.kill(os.getpid(), number)
        assert preempted()
        assert preempted.reason == number.name


def test_signals_in_quick_succession_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "SECOND_REQUEST_SECONDS", 1000.0)
    with Preemption() as preempted:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert preempted.reason == "SIGTERM"


def test_a_second_request_ends_the_process_by_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(preemption, "leave_by", left.append)
    monkeypatch.setattr(preemption, "SECOND_REQUEST_SECONDS", 0.0)
    with Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert left == [signal.SIGUSR1]


SCRIPT = """
import time
from scaling.core.trainer.preemption import Preemption
with Preemption() as preempted:
    print("ready", flush=True)
    while not preempted():
        time.sleep(0.01)
    print("flagged", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_real_process_leaves_on_the_second_signal_with_its_status(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "flagged\n"
        time.sleep(preemption.SECOND_REQUEST_SECONDS)
        process.send_signal(number)
        assert process.wait(60) == -number


FORKING_SCRIPT = """
import os, signal
from scaling.core.trainer.preemption import Preemption
with Preemption() as preempted:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(9 if preempted() else 0)
    raise SystemExit(os.waitpid(child, 0)[1])
"""


def test_a_forked_worker_ignores_what_its_parent_handles() -> None:
    assert subprocess.run([sys.executable, "-c", FORKING_SCRIPT], check=False, timeout=120).returncode == 0


def test_outside_the_main_thread_it_does_nothing() -> None:
    reached: list[bool] = []

    def run() -> None:
        with Preemption() as preempted:
            reached.append(preempted())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert reached == [False]


def handlers_after_training(rank: int, world_size: int) -> bool:
    """Train to the end, and return whether signals then do what they did before."""
    former = {number: signal.getsignal(number) for number in SIGNALS}
    with connected(data=2, global_batch_size=8, micro_batch_size=2) as topology:
        make_trainer(topology, train_iterations=1)[0].fit()
        return {number: signal.getsignal(number) for number in SIGNALS} == former


def test_a_run_that_was_not_asked_gives_the_signals_back_when_it_is_trained() -> None:
    assert run_distributed(handlers_after_training, 2) == [True, True]
