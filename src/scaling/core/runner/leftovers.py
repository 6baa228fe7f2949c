"""Leftovers of a run on this machine, found by a variable that everything it starts inherits. Linux only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scaling.core.errors import ScalingError
from scaling.core.runner.environment import NODE_VARIABLE

_PROC: Final = Path("/proc")
_FOLDER: Final = "scaling_node_{run_id}_{index}_"


def ask_node(run_id: str, index: int, number: signal.Signals) -> int:
    """Signal the node of a run on this machine; return the number of processes that were signalled, 0 or 1."""
    found = 0
    for pid in _of_run(run_id, index):
        words = _read(pid, "cmdline").split(b"\0")
        if b"scaling.core.runner.node" in words and b"run" in words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                found += 1
    return found


@contextlib.contextmanager
def temporary_folder(run_id: str, index: int) -> Iterator[None]:
    """Let this process make its temporary files in a folder that is removed at the end, or by `clear` after a kill."""
    former = tempfile.tempdir
    folder = tempfile.mkdtemp(prefix=_FOLDER.format(run_id=run_id, index=index))  # for this user only
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = former
        shutil.rmtree(folder, ignore_errors=True)


def clear(run_id: str, index: int, *, seconds: float = 5.0) -> list[int]:
    """Kill all processes of a run on this machine except this one and its ancestors; return those that do not end.

    If all end, temporary files of the run's node are removed, too.
    """
    spared = set(_ancestors(os.getpid()))
    deadline = time.monotonic() + seconds
    while left := [pid for pid in _of_run(run_id, index) if pid not in spared]:
        if time.monotonic() > deadline:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for folder in Path(tempfile.gettempdir()).glob(_FOLDER.format(run_id=run_id, index=index) + "*"):
        shutil.rmtree(folder, ignore_errors=True)
    return []


def _of_run(run_id: str, index: int) -> Iterator[int]:
    """Yield the processes that have the variable; a zombie has no environment."""
    if not _PROC.is_dir():
        raise ScalingError("this machine has no /proc, by which the processes of a run are found; end them by hand")
    wanted = f"{NODE_VARIABLE}={run_id}/{index}".encode()
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and wanted in _read(int(entry.name), "environ").split(b"\0"):
            yield int(entry.name)


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 0:
        yield pid
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""
