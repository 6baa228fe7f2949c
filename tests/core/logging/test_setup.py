"""Log lines: which rank shows what, in colour or not, and files that are continued."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.core.errors import ConfigError, StorageError
from scaling.core.logging import packages
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.setup import LOGGERS, close_logging, configure_logging, log_to_file, logger
from tests.core.logging.terminals import Terminal


@pytest.fixture(autouse=True)
def _leave_the_log_alone() -> Iterator[None]:
    yield
    close_logging()
    for name in (*LOGGERS, None):
        assert not [one for one in logging.getLogger(name).handlers if type(one).__module__.startswith("scaling")]


def log() -> logging.Logger:
    return logging.getLogger("scaling.core.anything")


def test_configuring_twice_shows_each_message_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure_logging(LoggerConfig())
    log().info("hello")
    shown = capsys.readouterr().err
    assert shown.count("hello") == 1


def test_each_line_names_time_level_and_rank(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggerConfig(), rank=0, world_size=2)
    log().info("ready")
    shown = capsys.readouterr().err
    assert shown.rstrip().endswith("[INFO] [rank 0] ready")


def test_a_terminal_shows_the_time_and_what_is_unusual(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for rank in (0, 3):
        configure_logging(LoggerConfig(), rank=rank, world_size=4)
        monkeypatch.setattr(sys, "stderr", stream := Terminal())
        log().info("ready")
        log().warning("trouble")
        shown[rank] = [re.sub(r"\d\d:\d\d:\d\d|\x1b\[\d*m", "", line) for line in stream.getvalue().splitlines()]
    assert shown == {0: [" ready", " [WARNING] trouble"], 3: [" [WARNING] [rank 3] trouble"]}


def test_a_missing_package_ends_the_ranks_that_need_it_before_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", {}.get)
    config = LoggerConfig(use_wandb=True, wandb_ranks=[1])
    configure_logging(config, rank=0)
    with pytest.raises(ConfigError, match=r"^logger\.use_wandb: .*`pip install wandb`"):
        configure_logging(config, rank=1)


def test_other_ranks_show_warnings_only_but_write_all_to_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LoggerConfig(log_dir=tmp_path / "run"), rank=3, world_size=4)
    log().info("detail")
    log().warning("trouble")
    shown = capsys.readouterr().err
    assert "detail" not in shown
    assert "trouble" in shown
    written = (tmp_path / "run" / "rank_3.log").read_text()
    assert "detail" in written
    assert "trouble" in written


def test_a_warning_that_comes_again_and_again_is_said_once_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LoggerConfig(log_dir=tmp_path))
    for step in range(190):
        log().warning("the %s is full", "disk")
        log().info("the disk is full")
        log().warning("step %d", step // 189)
    close_logging()
    written = (tmp_path / "rank_0.log").read_text()
    for text in (written, capsys.readouterr().err):
        warnings = [line.partition("[run] ")[2] for line in text.splitlines() if "[WARNING]" in line]
        assert warnings[:3] == ["the disk is full", "step 0", "step 1"]
        assert warnings[3:] == ["190 times in all: the disk is full", "189 times in all: step 0"]
        assert text.count("[INFO]") == 190


def test_a_file_is_continued_not_replaced(tmp_path: Path) -> None:
    for text in ("first", "second"):
        configure_logging(LoggerConfig(log_dir=tmp_path))
        log().info(text)
    assert [line.rpartition(" ")[2] for line in (tmp_path / "rank_0.log").read_text().splitlines()] == [
        "first",
        "second",
    ]


def test_the_level_is_respected(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggerConfig.from_dict({"log_level": "error"}))
    log().warning("not this")
    log().error("but this")
    shown = capsys.readouterr().err
    assert "not this" not in shown
    assert "but this" in shown


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_may_be_without_colour(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(LoggerConfig())
    logger.error("bad")
    assert "bad" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_colour_is_for_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logging(LoggerConfig(log_dir=tmp_path))
    for stream, coloured in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        log().error("red")
        assert ("\x1b[31m" in stream.getvalue()) == coloured
    assert "\x1b" not in (tmp_path / "rank_0.log").read_text()


def test_the_program_that_is_run_logs_like_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggerConfig())
    logging.getLogger("__main__").info("hello")
    assert capsys.readouterr().err.count("hello") == 1


def test_what_is_for_the_file_alone_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggerConfig(log_dir=tmp_path))
    log_to_file("the whole traceback")
    assert "the whole traceback" in (tmp_path / "rank_0.log").read_text()
    assert capsys.readouterr().err == ""


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configure_logging(LoggerConfig())
    log().error("only shown")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"logger\.log_dir"):
        configure_logging(LoggerConfig(log_dir=tmp_path / "file" / "run"))


def test_a_disk_that_fills_up_ends_the_file_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggerConfig(log_dir=tmp_path))
    [file] = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    assert file.stream is not None
    file.stream.close()
    file.stream = open("/dev/full", "w")  # noqa: SIM115  # closed with the handler
    for _ in range(3):
        log().info("message")
    shown = capsys.readouterr().err
    assert shown.count("message") == 3
    assert shown.count("cannot be written any more") == 1
    assert "Traceback" not in shown


def line_of(name: str, path: str, level: int = logging.INFO) -> None:
    """Log a line as if a file wrote it."""
    other = logging.getLogger(name)
    if other.isEnabledFor(level):
        other.handle(logging.LogRecord(name, level, path, 1, f"{name} says so", None, None))


def test_lines_of_a_users_own_packages_are_shown_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LoggerConfig(log_dir=tmp_path))
    line_of("their_package.data", "/home/somebody/their_package/data.py")
    line_of("their_package.chatter", "/home/somebody/their_package/data.py", logging.DEBUG)
    line_of("installed", f"{sysconfig.get_path('purelib')}/installed/__init__.py")
    line_of("installed.trouble", f"{sysconfig.get_path('purelib')}/installed/__init__.py", logging.WARNING)
    line_of("asyncio", asyncio.__file__)
    for told in (capsys.readouterr().err, (tmp_path / "rank_0.log").read_text()):
        assert [line.split()[-3] for line in told.splitlines()] == ["their_package.data", "installed.trouble"]
    close_logging()
    assert logging.getLogger().level == logging.WARNING
    line_of("their_package.data", "/home/somebody/their_package/data.py")
    assert not capsys.readouterr().err


def test_a_program_that_shows_its_own_lines_shows_them_once(capsys: pytest.CaptureFixture[str]) -> None:
    root, own = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(own)
    root.setLevel(logging.DEBUG)
    try:
        configure_logging(LoggerConfig())
        line_of("their_package", "/home/somebody/their_package/data.py", logging.DEBUG)
        log().info("hello")
        close_logging()
        assert root.level == logging.DEBUG
    finally:
        root.removeHandler(own)
        root.setLevel(logging.WARNING)
    shown = capsys.readouterr().err
    assert (shown.count("their_package says so"), shown.count("hello")) == (1, 1)
