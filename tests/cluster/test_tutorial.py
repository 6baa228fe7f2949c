"""The script that makes two hosts for whoever follows the tutorial."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path("examples/tutorials/two_hosts.sh")

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "hosts"
    call(tmp_path / "hosts", "down")


def environment(folder: Path) -> dict[str, str]:
    """Return variables by which the script makes hosts beside those that somebody may have made with it."""
    return {**os.environ, "FOLDER": str(folder), "NAME": f"tutorial-{os.getpid()}"}


def call(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_hosts_of_the_tutorial_reach_each_other_and_are_gone_afterwards(folder: Path) -> None:
    made = call(folder, "up")
    assert made.returncode == 0, made.stderr
    reached = call(folder, "run", "alpha", "ssh", "-F", folder / "ssh_config", "beta", "hostname; pwd")
    assert (reached.returncode, reached.stdout) == (0, "beta\n/root\n"), reached.stderr
    again = call(folder, "up")
    assert again.returncode == 2
    assert "they are up already" in again.stderr
    with subprocess.Popen(["bash", SCRIPT, "run", "beta", "sleep", "1000"], env=environment(folder)):
        assert call(folder, "down").returncode == 0
    assert not folder.exists()
    assert "there is no host alpha" in call(folder, "run", "alpha", "true").stderr


def test_the_script_says_what_it_takes(folder: Path) -> None:
    for arguments in ([], ["sideways"], ["run", "alpha"]):
        said = call(folder, *arguments)
        assert said.returncode == 2
        assert said.stderr.startswith("error: ")
