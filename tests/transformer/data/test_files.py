"""Files that survive a kill, and locks that do not outlive their holder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.core.errors import StorageError
from scaling.transformer.data.files import exclusive, storage_errors, write_atomically


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_errors_of_the_system_name_what_was_being_done() -> None:
    reason = r"writing tokens failed: No such file or directory \(/absent/file\)"
    with pytest.raises(StorageError, match=reason), storage_errors("writing tokens"):
        Path("/absent/file").read_bytes()


HOLD = """
import sys
from pathlib import Path
from scaling.transformer.data.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_waited_for_and_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        # Were the lock not held by the other process, nothing would kill it, and its end below would never come.
        with exclusive(lock, on_wait=holder.kill):
            pass
        assert holder.wait() == -9
    assert lock.exists()


def test_a_free_lock_is_not_waited_for(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "lock", on_wait=lambda: pytest.fail("waited")):
            pass
