"""What tests of runs through Slurm share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.core.runner.slurm_tools import TOOLS


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put what stands in for Slurm's commands and Python on PATH; return where they note what they are given."""
    folder, notes = tmp_path / "tools", tmp_path / "notes"
    folder.mkdir()
    notes.mkdir()
    for name, text in TOOLS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o700)
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "FAKE_", "SCALING_", "MASTER_", "OMP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(notes))
    monkeypatch.setenv("FAKE_HOSTS", "one two three")
    monkeypatch.setenv("FAKE_ENDS", "0")
    monkeypatch.chdir(tmp_path)
    return notes
