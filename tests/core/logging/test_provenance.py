"""run.json says what ran on what, and nothing of the environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import StorageError
from scaling.core.logging import provenance
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.provenance import git_state, write_run_files

LAYOUT = {"pipe": 1, "data": 2, "context": 1, "model": 1}


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, env=environment)


def test_a_run_says_what_ran_on_what(tmp_path: Path) -> None:
    config = LoggerConfig(log_dir=tmp_path)
    write_run_files(tmp_path, config, layout=LAYOUT, data_fingerprint="abc")
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["layout"] == LAYOUT
    assert run["data_fingerprint"] == "abc"
    assert run["versions"]["torch"]
    assert run["hardware"]["cores"] == os.cpu_count()
    assert run["config_digest"] == config.digest()
    assert LoggerConfig.from_yaml(tmp_path / "config.yml") == config


def test_a_run_tells_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-environment")
    write_run_files(tmp_path, LoggerConfig(), layout=LAYOUT, data_fingerprint=None)
    assert not any("canary" in path.read_text() for path in tmp_path.iterdir())


def test_other_ranks_and_runs_without_a_folder_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run_files(tmp_path, LoggerConfig(), layout=LAYOUT, data_fingerprint=None, rank=1)
    write_run_files(None, LoggerConfig(), layout=LAYOUT, data_fingerprint=None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_run_files(tmp_path / "file" / "run", LoggerConfig(), layout=LAYOUT, data_fingerprint=None)


def test_the_state_of_a_repository_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_GIT_SECONDS", 120)
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-b", "trunk")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path)
    assert clean is not None
    assert (len(clean["commit"]), clean["branch"], clean["changed_files"]) == (40, "trunk", 0)
    (tmp_path / "a").write_text("2")
    changed = git_state(tmp_path)
    assert changed is not None
    assert changed["changed_files"] == 1


def test_a_repository_too_large_to_be_looked_through_in_time_is_not_called_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-b", "trunk")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    run = subprocess.run

    def slow_status(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "status" in command:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return run(command, **{**options, "timeout": 120})

    monkeypatch.setattr(subprocess, "run", slow_status)
    found = git_state(tmp_path)
    assert found is not None
    assert (found["branch"], found["changed_files"]) == ("trunk", None)
