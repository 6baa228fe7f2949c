"""How many cores there are for work: bound by affinity, and by a container's quota of processor time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scaling.core.runner.cores import available_cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 6), ("250000 100000", 2), ("800000 100000", 6), ("50000 100000", 1), ("nonsense", 6), (None, 6)],
)
def test_a_quota_of_processor_time_is_a_limit(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores(tmp_path / "cpu.max") == cores


def test_cores_are_never_less_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() == 1
