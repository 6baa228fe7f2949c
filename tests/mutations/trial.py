"""Run tests on a copy of the repository, each time in a process forked from one that has loaded what loads slowly."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

from tests.mutations.edits import Edit

HEAVY = (
    *("numpy", "torch", "torch.distributed", "torch._dynamo", "safetensors.torch", "tokenizers", "pydantic", "yaml"),
    *("hypothesis.strategies", "rich.progress", "typer.testing", "multiprocessing.forkserver", "concurrent.futures"),
)
"""What is imported before the forks: nothing of this repository, which differs from fork to fork."""

LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build")


def preload() -> None:
    """Import what is heavy. A fork may not find threads, so there is one."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in HEAVY:
        importlib.import_module(name)


@dataclass(frozen=True)
class Verdict:
    """What became of a run of tests."""

    failed: str | None
    """The first test that failed, or the file that could not be collected; None where all passed."""
    seconds: float
    timed_out: bool = False
    ran: int = 0


class Copy:
    """A copy of the repository in which one file at a time is edited."""

    def __init__(self, repository: Path, directory: Path) -> None:
        self.root = directory / "repository"
        self._directory = directory
        self._time = 2_000_000_000  # later than any file's: what was compiled of another text is never taken
        shutil.copytree(repository, self.root, ignore=LEFT_OUT)

    @contextlib.contextmanager
    def edited(self, edit: Edit) -> Iterator[None]:
        """Have the edit in its file, inside the context."""
        path = self.root / edit.path
        text, status = path.read_text(), path.stat()
        path.write_text(edit.apply(text))
        self._time += 1
        os.utime(path, (self._time, self._time))
        try:
            yield
        finally:
            path.write_text(text)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def run(self, tests: Sequence[str], *, limit: float) -> Verdict:
        """Run tests until one fails. What is not done after `limit` seconds is killed, with all that it has started."""
        result = self._directory / "result.json"
        result.unlink(missing_ok=True)
        began = time.monotonic()
        keeper = os.fork()
        if not keeper:
            _in_fork(lambda: _keep(self.root, tests, limit, result))
        os.waitpid(keeper, 0)
        seconds = time.monotonic() - began
        if not result.exists():
            late = seconds >= limit
            return Verdict("time limit" if late else "the process died", seconds, timed_out=late)
        return Verdict(**json.loads(result.read_text()), seconds=seconds)


def _in_fork(act: Any) -> None:
    """Act, and never return to what the parent was doing."""
    try:
        act()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _keep(root: Path, tests: Sequence[str], limit: float, result: Path) -> None:
    """Fork the process that tests, wait for it, and leave nothing of it behind."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    drawing = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # that the parent is gone is seen below, and cleaned up after
    tester = os.fork()
    if not tester:
        _in_fork(lambda: _test(root, tests, result))
    deadline = time.monotonic() + limit
    while os.waitpid(tester, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline or os.getppid() != drawing:
            os.kill(tester, signal.SIGKILL)
            os.waitpid(tester, 0)
            break
        time.sleep(0.02)
    while children := _children():
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


class _Notes:
    """A plugin of pytest that keeps what failed first."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def _test(root: Path, tests: Sequence[str], result: Path) -> None:
    """Be a pytest that was started in the copy."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    repository = str(Path.cwd())
    os.chdir(root)
    sys.path[:] = [str(root / "src"), str(root), *(p for p in sys.path if p and not p.startswith(repository))]
    os.environ["PYTHONPATH"] = str(root / "src")
    os.environ.pop("OMP_NUM_THREADS", None)
    for name in [*sys.modules]:
        if name.split(".")[0] in ("tests", "scaling"):
            del sys.modules[name]
    _prepare_fork_server()
    notes = _Notes()
    quiet = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = int(pytest.main([*quiet, *tests], plugins=[notes]))
    if status not in (0, 1) and notes.failed is None:
        notes.failed = f"pytest ended with status {status}"
    result.write_text(json.dumps({"failed": notes.failed, "ran": notes.ran}))


def _prepare_fork_server() -> None:
    """Fork the server of worker processes now: it has torch already, and nothing yet of what tests load and change.

    It waits until the server is to be started, and takes over the listening socket then.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = os.fork()
    if not server:
        ours.close()
        _in_fork(lambda: _serve(theirs))
    theirs.close()
    start, waiting = util.spawnv_passfds, [True]

    def spawn(path: Any, arguments: Any, descriptors: Any) -> int:
        if not waiting or "multiprocessing.forkserver import main" not in str(arguments[-1]):
            return start(path, arguments, descriptors)
        waiting.clear()
        message = [arguments[-1], list(descriptors), dict(os.environ), os.getcwd()]
        socket.send_fds(ours, [json.dumps(message).encode()], list(descriptors))
        ours.close()
        return server

    util.spawnv_passfds = spawn  # type: ignore[assignment]  # it hands on what it is given


def _serve(ask: socket.socket) -> None:
    message, given, _, _ = socket.recv_fds(ask, 1 << 20, 8)
    ask.close()
    if not message:
        return
    command, theirs, environment, directory = json.loads(message)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    own = dict(zip(theirs, given, strict=True))
    head, _, arguments = command.partition("main(")
    first, second, rest = arguments.split(", ", 2)
    exec(f"{head}main({own[int(first)]}, {own[int(second)]}, {rest}", {"__name__": "__main__"})


def same_test(failed: str) -> str:
    """Return what to give to pytest to run a failed test again: a parametrized one whole, whatever its name has."""
    return re.sub(r"\[.*", "", failed, flags=re.DOTALL)
