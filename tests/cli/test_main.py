"""The command as a whole: quick to answer, and every error a message with its status."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.cli.main import SUB_COMMANDS, main
from tests.transformer.small import command_environment


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `scaling ARGUMENTS` in this process; return its status."""
    monkeypatch.setattr("sys.argv", ["scaling", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(leaving.value.code or 0)


NEEDED_FOR_HELP = {
    "scaling",
    "scaling.cli",
    "scaling.cli.imported",
    "scaling.cli.leaving",
    "scaling.cli.main",
    "scaling.cli.many_values",
    "scaling.core",
    "scaling.core.errors",
    "scaling.core.lazy",
    "scaling.core.topology",
    "scaling.core.topology.launch",
}
HEAVY = {"torch", "numpy", "tokenizers", "transformers", "pydantic", "yaml", "multiprocessing", "importlib.metadata"}


def test_help_names_every_sub_command_and_imports_hardly_anything() -> None:
    program = (
        "import sys; sys.argv = ['scaling', '--help']\n"
        "from scaling.cli.main import main\n"
        "try:\n    main()\n"
        f"finally:\n    print('heavy:', sorted({HEAVY} & set(sys.modules)))\n"
        "    ours = {name for name in sys.modules if name.startswith('scaling')}\n"
        f"    print('ours:', sorted(ours - {NEEDED_FOR_HELP}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=command_environment(), capture_output=True, text=True, check=True
    )
    assert "heavy: []" in ended.stdout
    assert "ours: []" in ended.stdout
    for name, command in SUB_COMMANDS.items():
        assert name in ended.stdout
        assert command.help in " ".join(ended.stdout.replace("│", " ").split())


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_every_sub_command_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert f"scaling {name}" in capsys.readouterr().out


def every_command() -> list[tuple[str, ...]]:
    """Return the words of every command, `checkpoint ls` among them."""
    groups = {name: getattr(command.load(name), "commands", None) for name, command in SUB_COMMANDS.items()}
    return [
        (name, *words) for name, group in groups.items() for words in ([(one,) for one in group] if group else [()])
    ]


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, *words, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "\u2026" in line], "cut off"


def test_the_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "1.2.3\n"


def test_without_a_sub_command_there_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) in (0, 2)
    shown = capsys.readouterr()
    assert "Usage" in shown.out + shown.err


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["generate", "somewhere"], ["train", "--fast"]])
def test_a_mistyped_command_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_an_error_is_a_message_and_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "generate", str(tmp_path), "--prompt", "a") == 2
    remedy = "name the folder of global_step<N> (a run's trainer.save_dir)"
    assert capsys.readouterr().err == f"error: there is no checkpoint in {tmp_path}; {remedy}\n"
