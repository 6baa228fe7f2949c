"""Early signals: a program asked to leave before it has begun ends with 75, even while its main thread is blocked."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import wait_until

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


def ended_by(number: signal.Signals, wait: str, before: str = "") -> int:
    """Return the status of a program that listens, then waits by `wait`, once it is signalled."""
    code = (
        f"from scaling.core.runner.early_signals import listen_early\nimport signal, os, threading\n{before}\n"
        f"listen_early()\nprint('ready', flush=True)\n{wait}\n"
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
    code = "from scaling.core.runner.early_signals import listen_early\nimport os, signal, threading\n"
    code += f"listen_early()\n{later}\n"
    with subprocess.Popen([sys.executable, "-c", f"{code}signal.pause()"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(20) == 4


def test_a_signal_to_a_forked_worker_does_not_end_its_parent() -> None:
    fork = "child = os.fork()\nif not child: signal.pause()\n"
    fork += "import time; time.sleep(0.2); os.kill(child, signal.SIGTERM); os.waitpid(child, 0); time.sleep(0.3)\n"
    code = f"from scaling.core.runner.early_signals import listen_early\nimport os, signal\nlisten_early()\n{fork}"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


@pytest.mark.parametrize("module", ["scaling.transformer.train", "scaling.cli.main"])
def test_the_programs_listen_before_torch_is_loaded(module: str) -> None:
    command = [sys.executable, "-m", module, "no_such_config.yml"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        of_process = Path("/proc", str(process.pid))
        wait_until(lambda: catches(of_process, signal.SIGUSR1), "it does not listen")
        assert "libtorch" not in (of_process / "maps").read_text()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 75


def catches(process: Path, number: signal.Signals) -> bool:
    """Return whether a process, by its folder in /proc, has a handler for a signal."""
    caught = next(line for line in (process / "status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
