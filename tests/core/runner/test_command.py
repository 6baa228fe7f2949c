"""The command line of a program: a configuration and changes to it, or what to write instead."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from scaling.core.errors import ConfigError
from scaling.core.runner.command import command_line


def test_a_configuration_comes_first_and_then_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "config.yml", "trainer.seed=1", "a=2"])
    assert command_line() == ("config.yml", ["trainer.seed=1", "a=2"])


@pytest.mark.parametrize("arguments", [[], ["--help"]])
@pytest.mark.parametrize(("module", "program"), [(None, "train.py"), ("my.train", "python3 -m my.train")])
def test_without_a_configuration_the_way_to_start_it_is_named(
    arguments: list[str], module: str | None, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else SimpleNamespace(name=module)  # type: ignore[assignment]  # enough of one
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(ConfigError) as raised:
        command_line()
    assert str(raised.value) == f"name a configuration: {program} CONFIG [KEY=VALUE ...]"
