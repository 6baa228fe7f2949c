"""A path that is nearly that of checkpoints: found where only one thing can be meant, named where several can."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scaling.core.checkpoint.nearby import folder_meant, folders_near
from scaling.core.errors import CheckpointError


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Return the folder of a run's checkpoints, two levels below the temporary one."""
    folder = tmp_path / "run" / "checkpoints"
    for step in (5, 10):
        (folder / f"global_step{step}").mkdir(parents=True)
        (folder / f"global_step{step}" / "manifest.json").touch()
    (folder / "latest").write_text("global_step10\n")
    (folder / "vocab.json").touch()
    (tmp_path / "run" / "logs").mkdir()
    return folder


def test_what_is_right_is_left_alone_and_what_can_mean_one_thing_is_found(steps: Path, tmp_path: Path) -> None:
    newest = steps / "global_step10"
    (steps / "best").symlink_to("global_step5")
    (tmp_path / "run" / "newest").symlink_to("checkpoints")  # another way to the same place
    (tmp_path / "run" / ".hidden" / "global_step1").mkdir(parents=True)
    expected = {
        steps: steps,
        newest: newest,
        steps / "best": steps / "best",
        steps.parent: steps,
        tmp_path: steps,
        steps / "latest": newest,
        steps / "vocab.json": steps,
        newest / "manifest.json": newest,
    }
    for given, meant in expected.items():
        assert folder_meant(given) == meant
    # A link called latest, as other libraries leave it, is a step folder like any other.
    (steps / "latest").unlink()
    (steps / "latest").symlink_to("global_step5")
    assert folder_meant(steps / "latest") == steps / "latest"


def refused(given: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"there is no checkpoint in {given}")) as caught:
        folder_meant(given)
    for part in parts:
        assert part in str(caught.value)


def test_where_several_can_be_meant_they_are_named(steps: Path, tmp_path: Path) -> None:
    other = tmp_path / "another" / "global_step3"
    other.mkdir(parents=True)
    refused(tmp_path, f"there are in {other.parent}, {steps}; name one of them")
    for number in range(20):
        (tmp_path / "many" / f"run{number}" / "global_step1").mkdir(parents=True)
    refused(tmp_path / "many", "run0", "and 12 more")


def test_what_is_not_there_gets_the_names_that_are(steps: Path, tmp_path: Path) -> None:
    refused(steps / "global_step7", "global_step7 is not a folder", f"in {steps}: global_step10, global_step5")
    refused(tmp_path / "run" / "checkpoint", f"did you mean {steps}?")
    refused(tmp_path / "run" / "logs", "name the folder of global_step<N>")
    refused(tmp_path / "nowhere" / "at" / "all", "all is not a folder")
    for content in ("global_step99", "../run/checkpoints/global_step5", ""):
        (steps / "latest").write_text(content)
        refused(steps / "latest", f"it names {content!r}", "global_step10, global_step5")
    (steps / "latest").unlink()
    refused(steps / "latest", "global_step10, global_step5")
    assert folders_near(steps / "latest") == []


def test_a_whole_disk_is_not_searched(steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.core.checkpoint.nearby.LOOKED_AT", 1)
    assert folders_near(tmp_path) == []
