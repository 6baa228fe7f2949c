"""The outermost frame of every training process: how it ends, and where the reason is reported."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from scaling.core.errors import AskedToLeave, ExitStatus, HangError
from scaling.core.logging.setup import log_to_file
from scaling.core.runner.early_signals import listen_early
from scaling.core.runner.report import Report
from scaling.core.topology.launch import RUNNER_VARIABLE

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def run_process(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as the whole work of this process, and end with the exit status of its outcome.

    `main` returns an exit status or None for 0. An error raised on purpose ends with its `exit_status` and its message,
    without traceback; a full or failing disk with 74 and its message; any other exception with 1 and its traceback;
    Ctrl-C, or SIGTERM and SIGUSR1 before they are handled, with 75. Under the runner and under torchrun the message is
    left in the error file; the first process to fail, or the runner, prints it. After a failure the process ends at
    once: the rest of a broken process group could make it wait for ever.
    """
    faulthandler.enable()
    listen_early()
    _end_with_runner()
    _listen_to_threads()
    try:
        status = main() or ExitStatus.DONE
    except KeyboardInterrupt:
        status = ExitStatus.PREEMPTED
    except Exception as error:
        report = Report.of(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        _ignore_signals()
        _tell(report)
        _leave_at_once(report.status)
    _ignore_signals()
    sys.exit(_told_to_runner(int(status)))


def _listen_to_threads() -> None:
    """Let a thread end the process by raising certain errors: the main thread may be blocked for ever."""
    others = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if isinstance(error, HangError):
            report = Report.of(error)
            _tell(report)
            _leave_at_once(report.status)
        if isinstance(error, AskedToLeave):
            _leave_at_once(_told_to_runner(ExitStatus.PREEMPTED))
        others(arguments)

    threading.excepthook = hook


def _told_to_runner(status: int) -> int:
    """Report a pre-emption to the runner and return 0; otherwise return `status`.

    The agent treats any other status as a failure, and would stop the processes that are still saving.
    """
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if status == ExitStatus.PREEMPTED and RUNNER_VARIABLE in os.environ and path:
        with contextlib.suppress(OSError):
            Report(message="pre-empted", status=status).write(Path(path))
            return ExitStatus.DONE
    return status


def _tell(report: Report) -> None:
    log_to_file(f"{report.trace}{report.message}")
    path = os.environ.get(ERROR_FILE_VARIABLE)
    is_told = False
    if path:
        with contextlib.suppress(OSError):
            report.write(Path(path))
            is_told = RUNNER_VARIABLE in os.environ or not _is_first(Path(path).parent.parent)
    if not is_told:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        who = f"rank {os.environ.get('RANK')} on {socket.gethostname()}: " if several else ""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{report.explain(who)}\n")


def _is_first(attempt: Path) -> bool:
    """Return whether this is the first process of this machine that failed in the attempt with folder `attempt`."""
    try:
        os.close(os.open(attempt / "first_failure", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _leave_at_once(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    logging.shutdown()
    os._exit(status)


def _ignore_signals() -> None:
    """Ignore signals, as the work is done: a launcher that stops all processes must not change how this one ends.

    Nor may it keep a failed process from reporting why, when the others rely on it for that.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _end_with_runner() -> None:
    """If the runner is killed, which ends no other process, ask this process to leave as the runner would have."""
    runner = os.environ.get(RUNNER_VARIABLE)
    if runner is None:
        return
    if os.getppid() != int(runner):
        if _is_gone(int(runner)):  # it was killed while this process was starting
            os.kill(os.getpid(), signal.SIGTERM)
        return  # a child of a process of the runner, which leaves with its parent

    def watch() -> None:
        while os.getppid() == int(runner):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="scaling-runner-watch", daemon=True).start()


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists, and is another user's
        pass
    return False
