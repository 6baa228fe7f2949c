"""A lock ends with its holder, however that ends, and says who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaling.core.errors import StorageError
from scaling.core.storage import lock
from scaling.core.storage.lock import file_lock, locked

HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on somewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(directory / lock.FILE_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_run_is_refused_and_told_who_was_first(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        message = rf"is being written by another run \(process {process.pid} on somewhere\).*trainer\.save_dir"
        with pytest.raises(StorageError, match=message), locked(tmp_path, setting="trainer.save_dir", patience=0.2):
            pass


def test_the_setting_that_names_the_folder_is_the_one_to_change(tmp_path: Path) -> None:
    with (
        another_process(tmp_path),
        pytest.raises(StorageError, match=r"or set logger\.log_dir to another folder"),
        locked(tmp_path, setting="logger.log_dir", patience=0.0),
    ):
        pass


def test_a_killed_run_blocks_nobody(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / lock.FILE_NAME).exists()
        with locked(tmp_path, setting="trainer.save_dir", patience=0.0):
            assert f"process {os.getpid()} on" in (tmp_path / lock.FILE_NAME).read_text()
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()  # it ends by itself now
        with locked(tmp_path, setting="trainer.save_dir", patience=60.0):
            pass


def test_a_folder_that_cannot_be_written_has_no_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path / "absent", setting="trainer.save_dir"):
        assert not (tmp_path / "absent").exists()
    assert not caplog.text


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unknown)
    with locked(tmp_path, setting="trainer.save_dir"):
        pass
    (tmp_path / lock.FILE_NAME).unlink()
    (tmp_path / lock.FILE_NAME).symlink_to("elsewhere")
    with locked(tmp_path, setting="trainer.save_dir"):
        pass
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / lock.FILE_NAME).is_symlink()


HOLD_FILE = """
import sys
from pathlib import Path
from scaling.core.storage.lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_lock_is_waited_for_and_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_FILE, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        # Were the lock not held by the other process, nothing would kill it, and its end below would never come.
        with file_lock(lock, on_wait=holder.kill):
            pass
        assert holder.wait() == -9
    assert lock.exists()


def test_a_file_lock_is_not_taken_before_it_is_free(tmp_path: Path) -> None:
    """Locks of a file that is opened twice exclude each other within a process too."""
    descriptor, events = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT), []

    def release() -> None:
        events.append("released")
        os.close(descriptor)

    assert lock.try_lock(descriptor)
    with file_lock(tmp_path / "lock", on_wait=threading.Timer(0.1, release).start):
        events.append("taken")
    assert events == ["released", "taken"]


def test_a_free_lock_is_not_waited_for(tmp_path: Path) -> None:
    for _ in range(2):
        with file_lock(tmp_path / "lock", on_wait=lambda: pytest.fail("waited")):
            pass
