"""A command over several processes: one of them speaks, a failure is said once, and all of them leave when asked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from scaling.cli.ranks import Ranks
from scaling.core.errors import OUTPUT_CLOSED, ConfigError
from tests.processes import descendants, is_running, wait_until

SOON = 4.0
"""Twice what is promised: other tests may have the cores. Less than a failed process is waited for otherwise."""


@contextmanager
def started(way: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command of two processes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.cli.ranks_command", way]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


def hang_up(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGHUP)


def close_output(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize(
    ("leave", "status"),
    [(interrupt, 128 + signal.SIGINT), (hang_up, 128 + signal.SIGHUP), (close_output, OUTPUT_CLOSED)],
)
def test_all_leave_at_once_and_without_a_word(leave: Callable[[subprocess.Popen[bytes]], None], status: int) -> None:
    with started("wait") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"rank 0 of 2\n"
        ranks = descendants(process.pid)
        assert len(ranks) >= 2
        leave(process)
        asked = time.monotonic()
        assert process.wait(30) == status
        assert time.monotonic() - asked < SOON
        wait_until(lambda: not any(map(is_running, ranks)), "a process was left behind", seconds=SOON)
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("way", "status", "message"),
    [
        ("mistake", 2, "error: this is a mistake\n"),
        (
            "refuse",
            65,
            f"The other process was stopped.\nerror: rank 1 on {socket.gethostname()}: these are not numbers\n",
        ),
    ],
)
def test_a_failure_is_said_once(way: str, status: int, message: str) -> None:
    with started(way) as process:
        said, shown = process.communicate(timeout=60)
        assert (process.returncode, shown.decode()) == (status, message)
        assert said.count(b"rank 0") <= 1


def test_one_device_is_not_for_several_processes() -> None:
    with pytest.raises(ConfigError, match=r"device \(gpu\) cannot be used"):
        Ranks(pipe_parallel_size=2, device="gpu").run(print)
    with pytest.raises(ConfigError, match=r"--device \(cpu:0\) is one device, but there are 2 processes"):
        Ranks(pipe_parallel_size=2, device="cpu:0").run(print)


def test_a_launcher_starts_as_many_processes_as_the_options_ask_for() -> None:
    Ranks(pipe_parallel_size=2).require_started(2)
    with pytest.raises(
        ConfigError, match=r"started 2 processes, but --model-parallel-size 1 .*-size 1 = 1; start 1, or"
    ):
        Ranks().require_started(2)
    with pytest.raises(
        ConfigError, match=r"started 1 process, but .* --data-parallel-size 3 = 6; start 6, or give sizes"
    ):
        Ranks(pipe_parallel_size=2, data_parallel_size=3).require_started(1)
