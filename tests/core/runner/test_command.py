"""The command line of a program: a configuration and changes to it, or what to write instead."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scaling.core.errors import ConfigError, ExitStatus
from scaling.core.runner import command
from scaling.core.runner.command import RunConfig, command_line, run_in_processes, run_training_process
from scaling.core.topology.launch import RUNNER_VARIABLE, LaunchContext


def test_a_configuration_comes_first_and_then_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "config.yml", "trainer.seed=1", "a=2"])
    assert command_line() == ("config.yml", ["trainer.seed=1", "a=2"])


def started_as(module: str | None, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else SimpleNamespace(name=module)  # type: ignore[assignment]  # enough of one
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])


@pytest.mark.parametrize("arguments", [["--help"], ["config.yml", "-h"]])
@pytest.mark.parametrize("dry_run", [False, True])
def test_help_is_the_usage_and_no_error(
    arguments: list[str], dry_run: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started_as("my.train", arguments, monkeypatch)
    with pytest.raises(SystemExit) as raised:
        command_line(dry_run=dry_run)
    assert raised.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python3 -m my.train CONFIG [KEY=VALUE ...]")
    assert ("--dry-run" in said) == dry_run


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
@pytest.mark.parametrize(("module", "program"), [(None, "train.py"), ("my.train", "python3 -m my.train")])
def test_without_a_configuration_the_way_to_start_it_is_named(
    arguments: list[str], module: str | None, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_as(module, arguments, monkeypatch)
    with pytest.raises(ConfigError) as raised:
        command_line()
    assert str(raised.value) == f"name a configuration: {program} CONFIG [KEY=VALUE ...]"


SIZES = ("model_parallel_size=1", "pipe_parallel_size=1", "world_size=2", "micro_batch_size=1", "global_batch_size=2")
OVERRIDES = ["trainer.seed=3", *(f"topology.{size}" for size in SIZES)]


def run_here(main: Callable[[], int]) -> None:
    raise SystemExit(main())


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_says_what_has_no_effect_and_all_work_with_what_was_read(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, given = tmp_path / "config.yml", dict[str, Any]()

    def start(config: object, **options: Any) -> int:
        given.update(options)
        return ExitStatus.HANG

    def train(config: RunConfig, launch: LaunchContext) -> ExitStatus:
        given.update(config=config, launch=launch)
        return ExitStatus.PREEMPTED

    path.write_text("trainer: {save_interval: 5}")
    monkeypatch.setattr(sys, "argv", ["run.py", str(path), *OVERRIDES])
    monkeypatch.setattr(command, "run_process", run_here)
    monkeypatch.setattr(command, "runner_main", start)
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "here")
    with pytest.raises(SystemExit) as ended:
        run_in_processes(RunConfig, "their.module")
    assert ended.value.code == ExitStatus.HANG
    note = "note: trainer.save_interval: is 5, but save_dir is null: nothing is saved\n"
    assert capsys.readouterr().err == (note if rank == 0 else "")
    assert (given["module_or_script"], given["processes"], given["log_dir"]) == ("their.module", 2, None)
    assert (given["config_path"], given["config_text"]) == (str(path), path.read_text())
    assert given["overrides"] == OVERRIDES
    with pytest.raises(SystemExit) as ended:
        run_training_process(RunConfig, train)
    assert ended.value.code == ExitStatus.PREEMPTED
    assert (given["config"].trainer.seed, given["config"].trainer.save_interval) == (3, 5)
    assert given["launch"].rank == rank


def test_a_module_that_would_start_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER_VARIABLE, str(os.getppid()))
    monkeypatch.setattr(sys, "argv", ["run.py", "config.yml"])
    monkeypatch.setattr(command, "run_process", run_here)
    with pytest.raises(ConfigError, match=r"their\.module would start itself without end: run_in_processes names it"):
        run_in_processes(RunConfig, "their.module")
