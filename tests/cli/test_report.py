"""`scaling report`: where the page is, and what ends it with a message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import run
from tests.core.report.folders import write_run
from tests.transformer.small import command_environment


def test_the_page_is_written_into_the_first_folder_and_its_path_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folders = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    assert run(monkeypatch, "report", *folders) == 0
    page = tmp_path / "a" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert "<title>Report: a and b</title>" in page.read_text()
    assert run(monkeypatch, "report", *folders, "--output", str(tmp_path / "other.html")) == 0
    assert (tmp_path / "other.html").read_text() == page.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{}/none"], 2, "error: {}/none does not exist; give the folder that logger.log_dir names"),
        (["{}/run", "{}/empty"], 2, "error: {}/empty is empty: none of metrics.jsonl,"),
        (["{}/run", "--output", "{}/empty"], 2, "is a folder; name a file in it, such as {}/empty/report.html"),
        (["{}/run", "--output", "{}/none/x.html"], 74, "cannot be written (No such file or directory); name another"),
    ],
)
def test_bad_input_ends_with_a_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert run(monkeypatch, "report", *(argument.format(tmp_path) for argument in arguments)) == status
    assert message.format(tmp_path) in capsys.readouterr().err


def test_a_report_of_a_language_model_needs_no_torch_and_knows_its_defaults(tmp_path: Path) -> None:
    config = "transformer_architecture: {hidden_size: 64, num_attention_heads: 4}\n"
    folder = write_run(tmp_path / "run", config=config)
    program = (
        f"import sys; sys.argv = ['scaling', 'report', {str(folder)!r}]\n"
        "from scaling.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=command_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[1:] == ["False"]
    assert "transformer_architecture.hidden_size" in (folder / "report.html").read_text()
