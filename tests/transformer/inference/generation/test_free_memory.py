"""What is free is what the machine has left, or the group of processes that this one is in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaling.transformer.inference.generation import free_memory
from scaling.transformer.inference.generation.free_memory import free_bytes

CPU = torch.device("cpu")


def say(monkeypatch: pytest.MonkeyPatch, folder: Path, *, available: str, limit: str, used: str) -> None:
    for name, text in (("_MEMINFO", available), ("_LIMIT", limit), ("_USED", used)):
        (folder / name).write_text(text)
        monkeypatch.setattr(free_memory, name, folder / name)


def test_the_smaller_of_two_limits_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = "MemTotal: 99 kB\nMemAvailable:   50 kB\n"
    say(monkeypatch, tmp_path, available=machine, limit="max\n", used="7\n")
    assert free_bytes(CPU) == 50 * 1024
    say(monkeypatch, tmp_path, available=machine, limit="1000\n", used="300\n")
    assert free_bytes(CPU) == 700
    say(monkeypatch, tmp_path, available=machine, limit="1000\n", used="1300\n")
    assert free_bytes(CPU) == 0


def test_where_nobody_can_say_there_is_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_MEMINFO", "_LIMIT", "_USED"):
        monkeypatch.setattr(free_memory, name, tmp_path / "nothing")
    assert free_bytes(CPU) is None
    assert free_bytes(torch.device("meta")) is None


def test_this_machine_has_some() -> None:
    assert (free_bytes(CPU) or 1) > 0
