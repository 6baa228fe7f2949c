"""A run is alone in its folders, however they lie to each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from scaling.core.errors import StorageError
from scaling.core.storage import lock
from scaling.core.storage.lock import locked
from scaling.core.topology.topology import Topology
from scaling.core.trainer import run
from scaling.core.trainer.run import alone_in
from tests.core.storage.test_lock import another_process

TRY = """
import fcntl, sys
fcntl.lockf(open(sys.argv[1], "a+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "locked", partial(locked, patience=0.0))


def named(save_dir: Path | None, log_dir: Path | None) -> Mapping[str, Path | None]:
    return {"trainer.save_dir": save_dir, "logger.log_dir": log_dir}


def is_taken(folder: Path) -> bool:
    """Return whether another process finds the folder locked."""
    command = [sys.executable, "-c", TRY, str(folder / lock.FILE_NAME)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0


@pytest.mark.parametrize(("save_dir", "log_dir"), [("a", "b"), ("a", "a/b"), ("a/b", "a"), ("a", "a"), ("a", "link")])
def test_both_folders_are_kept_from_a_second_run(save_dir: str, log_dir: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    folders = named(tmp_path / save_dir, tmp_path / log_dir)
    with alone_in(folders, Topology.single()):
        assert is_taken(tmp_path / save_dir)
        assert is_taken(tmp_path / log_dir)
    assert not list(tmp_path.rglob(lock.FILE_NAME))


@pytest.mark.parametrize(
    ("taken", "save_dir", "log_dir", "setting"),
    [
        ("a", "a", "b", "trainer.save_dir"),
        ("b", "a", "b", "logger.log_dir"),
        ("a", "a", "link", "trainer.save_dir and logger.log_dir"),
        ("b", None, "b", "logger.log_dir"),
    ],
)
def test_a_folder_that_another_run_writes_to_is_refused_by_its_setting(
    taken: str, save_dir: str | None, log_dir: str, setting: str, tmp_path: Path
) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / "link").symlink_to("a")
    folders = named(None if save_dir is None else tmp_path / save_dir, tmp_path / log_dir)
    with (
        another_process(tmp_path / taken),
        pytest.raises(StorageError, match=rf"{taken} is being written by another run .* or set {setting} to another"),
        alone_in(folders, Topology.single()),
    ):
        pass
    assert [path.parent.name for path in tmp_path.rglob(lock.FILE_NAME)] == [taken]


def test_without_folders_nothing_is_locked() -> None:
    with alone_in(named(None, None), Topology.single()):
        pass
