"""Settings that hold for every test: reproducible properties, a clean environment, no worker left behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.distributed import LAUNCHER_VARIABLES, close_workers

# Before torch is loaded, here and in the workers: threads that wait must not spin on cores that others need, and the
# name look-ups of torch's store must not wait for a name server that does not answer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

# What nohup starts ignores the first of these signals, and what a script starts in the background the two others. Tests
# send all three.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: two busy cores make single examples slow. Derandomised: the same examples on every machine, every time.
settings.register_profile("scaling", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("scaling")


def pytest_collection_finish() -> None:
    """Keep what the test modules import from being scanned: half a second at a time, and each training scans."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what a launcher around pytest, or an armed fault, may have left in the environment."""
    for name in (*LAUNCHER_VARIABLES, "SCALING_FAULT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def own_signal_handlers() -> Iterator[None]:
    """Undo what a test did to the handling of signals: processes started later would inherit an ignored one."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def workers() -> Iterator[None]:
    """End the pool of worker processes with the session."""
    yield
    close_workers()
