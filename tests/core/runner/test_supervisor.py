"""Signals reach every process once, and no process outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from scaling.core.errors import AskedToLeave
from scaling.core.runner import supervisor as module
from scaling.core.runner.supervisor import Processes, Supervisor
from tests.processes import is_running, wait_until

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
Started = list["subprocess.Popen[bytes]"]

OBEDIENT = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
)


@pytest.fixture
def processes() -> Iterator[Started]:
    started: Started = []
    former = {number: signal.getsignal(number) for number in SIGNALS}
    yield started
    assert {number: signal.getsignal(number) for number in SIGNALS} == former
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def start(processes: Started, text: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", text]
    processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
    return processes[-1]


def supervise(processes: Started, *, grace: float = 60.0) -> Supervisor:
    supervisor = Supervisor(grace=grace)
    supervisor.crew = Processes(lambda: {process.pid: process.returncode for process in processes})
    return supervisor


def wait(process: subprocess.Popen[bytes], supervisor: Supervisor, seconds: float = 60.0) -> int:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < deadline
        supervisor.check()
        time.sleep(0.01)
    return process.returncode


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", SIGNALS[:4])
def test_signals_are_passed_on_once(
    processes: Started, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with supervise(processes) as supervisor:
        process = start(processes, OBEDIENT)
        os.kill(os.getpid(), number)
        expected = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM
        assert wait(process, supervisor) == -expected
        assert (supervisor.asked, supervisor.forced) == (number, False)
        assert process.pid in supervisor.ended
        assert capfd.readouterr().err.startswith(f"\n{number.name}: the run stops, and saves if it has begun")


def test_processes_that_start_after_the_signal_are_told_too(processes: Started) -> None:
    with supervise(processes) as supervisor:
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait(start(processes, OBEDIENT), supervisor) == -signal.SIGTERM


def test_a_second_signal_kills(
    processes: Started, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_SECOND_REQUEST_SECONDS", 0.0)
    with supervise(processes) as supervisor:
        process = start(processes, STUBBORN)
        assert first_line(process) == b"ready"
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert wait(process, supervisor) == -signal.SIGKILL
        assert supervisor.forced
        assert supervisor.killed == {process.pid}
        assert capfd.readouterr().err.endswith("\nended at once\n")


def test_signals_in_quick_succession_are_one_request(processes: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECOND_REQUEST_SECONDS", 1000.0)
    with supervise(processes) as supervisor:
        process = start(processes, STUBBORN)
        assert first_line(process) == b"ready"
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        supervisor.check()
        assert not supervisor.forced
        assert process.poll() is None


def test_who_outlives_a_failure_is_killed(processes: Started) -> None:
    with supervise(processes, grace=0.1) as supervisor:
        stubborn = start(processes, STUBBORN)
        assert first_line(stubborn) == b"ready"
        assert wait(start(processes, "raise SystemExit(3)"), supervisor) == 3
        assert wait(stubborn, supervisor) == -signal.SIGKILL


class Two:
    """A crew of one member that has ended and one that has not; notes what it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.killed: list[int] = []

    def ends(self) -> dict[int, int | None]:
        return {11: 0, 12: None}

    def has_ended(self, member: int) -> bool:
        return False

    def ask(self, member: int, number: signal.Signals) -> None:
        self.asked.append((member, number))

    def kill(self, member: int) -> None:
        self.killed.append(member)


def test_only_who_still_runs_is_killed_and_once() -> None:
    supervisor = Supervisor()
    supervisor.crew = crew = Two()
    supervisor.forced = True
    supervisor.check()
    supervisor.check()
    assert (crew.killed, supervisor.killed) == ([12], {12})


def test_who_still_runs_is_told_once_however_long_it_takes_to_leave() -> None:
    supervisor = Supervisor()
    supervisor.crew = crew = Two()
    supervisor.check()
    assert crew.asked == []
    supervisor.asked = signal.SIGUSR1
    for _ in range(3):
        supervisor.check()
    assert crew.asked == [(12, signal.SIGUSR1)]


@pytest.mark.parametrize("status", [0, 75])
def test_who_is_done_or_preempted_takes_nobody_along(processes: Started, status: int) -> None:
    with supervise(processes, grace=0.0) as supervisor:
        other = start(processes, OBEDIENT)
        assert wait(start(processes, f"raise SystemExit({status})"), supervisor) == status
        supervisor.check()
        assert other.poll() is None


def test_leaving_takes_what_processes_started_along(processes: Started) -> None:
    with supervise(processes) as supervisor:
        process = start(processes, PARENT)
        orphan = int(first_line(process))
        assert wait(process, supervisor) == 0
        os.kill(orphan, 0)
    wait_until(lambda: not is_running(orphan), "what a process had started was left behind")


def test_a_hang_up_that_is_ignored_stays_ignored(processes: Started) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with supervise(processes) as supervisor:
            os.kill(os.getpid(), signal.SIGHUP)
            assert supervisor.asked is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_outside_the_main_thread_it_supervises_without_signals(processes: Started) -> None:
    codes: list[int] = []

    def run() -> None:
        with supervise(processes) as supervisor:
            codes.append(wait(start(processes, "raise SystemExit(5)"), supervisor))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert codes == [5]


def ask_and_fail() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("this is not reached")


def test_what_comes_before_all_processes_is_broken_off() -> None:
    with Supervisor() as supervisor:
        with pytest.raises(AskedToLeave, match="SIGTERM"), supervisor.interruption():
            ask_and_fail()
        with pytest.raises(AskedToLeave), supervisor.interruption():
            pass  # something inside may have swallowed the first one
    with Supervisor() as supervisor:
        with supervisor.interruption():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # afterwards it is passed on
        assert supervisor.asked is signal.SIGTERM
