"""What a keeper runs has its status, and does not outlive whoever started the keeper."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.core.runner import keeper
from tests.processes import is_running, wait_until

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.fixture
def keep() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(keep: list[subprocess.Popen[str]], *argv: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-I", str(Path(keeper.__file__)), *argv]
    keep.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
    return keep[-1]


@pytest.mark.parametrize(
    ("program", "status"), [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.abort()", 134)]
)
def test_its_status_is_that_of_what_it_runs(keep: list[subprocess.Popen[str]], program: str, status: int) -> None:
    assert start(keep, sys.executable, "-c", program).wait(60) == status


def test_what_cannot_be_started_is_named(keep: list[subprocess.Popen[str]]) -> None:
    process = start(keep, "no_such_command")
    assert process.wait(60) == 127
    assert process.stderr is not None
    assert process.stderr.read() == "no_such_command cannot be started: No such file or directory\n"


def test_what_it_runs_ends_with_its_standard_input(keep: list[subprocess.Popen[str]]) -> None:
    process = start(keep, sys.executable, "-c", SLEEP)
    assert process.stdout is not None
    assert process.stdin is not None
    kept = int(process.stdout.readline())
    assert is_running(kept)
    process.stdin.close()
    assert process.wait(60) == -9
    wait_until(lambda: not is_running(kept), "what it ran was left behind")
    process.stdin = None
