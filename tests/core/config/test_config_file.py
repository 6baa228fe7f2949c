"""A configuration is read once: the copy made for the processes of a run is what they read, of that file only."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from scaling.core.config.config_file import handed_on, read_config
from scaling.core.errors import ConfigError, StorageError


def test_a_copy_is_read_in_place_of_its_file_and_of_no_other(tmp_path: Path) -> None:
    other = tmp_path / "other.yml"
    other.write_text("b: 2")
    with handed_on(tmp_path / "gone.yml", "a: 1") as copy:
        assert read_config(tmp_path / "gone.yml", copy=copy) == "a: 1"
        assert read_config(str(other), copy=copy) == "b: 2"
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    assert not copy.parent.exists()
    with pytest.raises(ConfigError, match="does something delete temporary files"):
        read_config(tmp_path / "gone.yml", copy=copy)


def test_a_copy_that_cannot_be_written_is_named_and_errors_of_the_run_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError), handed_on("c.yml", ""):
        (tmp_path / "absent").read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(StorageError, match="set TMPDIR to another folder"), handed_on("c.yml", ""):
        pass
