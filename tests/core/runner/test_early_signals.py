"""Early signals: a program asked to leave before it has begun ends with 75, even while its main thread is blocked."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


def ended_by(number: signal.Signals, wait: str, before: str = "") -> int:
    """Return the status of a program that listens, then waits by `wait`, once it is signalled."""
    code = (
        f"from scaling.core.runner.early_signals import listen\nimport signal, os, threading\n{before}\n"
        f"listen()\nprint('ready', flush=True)\n{wait}\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        return process.wait(20)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_program_that_is_asked_to_leave_says_so(number: signal.Signals) -> None:
    assert ended_by(number, "signal.pause()") == 75


def test_a_program_leaves_although_its_main_thread_is_blocked() -> None:
    blocked = "import ctypes; [ctypes.CDLL(None).sleep(60) for _ in range(9)]"
    assert ended_by(signal.SIGTERM, blocked) == 75


def test_who_handles_a_signal_goes_on_handling_it() -> None:
    assert ended_by(signal.SIGUSR1, "signal.pause()", "signal.signal(signal.SIGUSR1, lambda *_: os._exit(3))") == 3


def test_who_listens_later_is_not_preceded() -> None:
    later = "signal.signal(signal.SIGTERM, lambda *_: (threading.Event().wait(0.5), os._exit(4)))\nprint(flush=True)"
    code = f"from scaling.core.runner.early_signals import listen\nimport os, signal, threading\nlisten()\n{later}\n"
    with subprocess.Popen([sys.executable, "-c", f"{code}signal.pause()"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(20) == 4


def test_a_signal_to_a_forked_worker_does_not_end_its_parent() -> None:
    fork = "child = os.fork()\nif not child: signal.pause()\n"
    fork += "import time; time.sleep(0.2); os.kill(child, signal.SIGTERM); os.waitpid(child, 0); time.sleep(0.3)\n"
    code = f"from scaling.core.runner.early_signals import listen\nimport os, signal\nlisten()\n{fork}"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


@pytest.mark.parametrize("module", ["scaling.transformer.train", "scaling.cli.main"])
@pytest.mark.parametrize("delay", [0.15, 0.4])
def test_the_programs_listen_while_they_are_imported(module: str, delay: float) -> None:
    command = [sys.executable, "-m", module, "no_such_config.yml"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) in {75, 2}, "2: it had found that there is no such configuration"
