"""Reports of failures are understood by torch's launcher, and its reports here."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ErrorHandler, ProcessFailure

from scaling.core.errors import ConfigError, StorageError
from scaling.core.runner.report import Report


def caught(error: Exception) -> Report:
    try:
        raise error
    except Exception as found:
        return Report.of(found)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("wrong"), 2, "wrong"),
        (StorageError("full"), 74, "full"),
        (OSError(errno.ENOSPC, "No space left on device", "/data"), 74, "[Errno 28] No space left on device: '/data'"),
    ],
)
def test_what_is_meant_for_the_user_has_no_traceback(error: Exception, status: int, message: str) -> None:
    report = caught(error)
    assert (report.status, report.message, report.trace) == (status, message, "")


@pytest.mark.parametrize("error", [ValueError("boom"), FileNotFoundError(errno.ENOENT, "no such file")])
def test_an_unexpected_error_has_one(error: Exception) -> None:
    report = caught(error)
    assert report.status == 1
    assert report.message == f"{type(error).__name__}: {error}"
    assert report.trace.startswith("Traceback")


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = caught(ValueError("boom"))
    report.write(tmp_path / "error.json")
    assert Report.read(tmp_path / "error.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"]


def test_torch_understands_a_report(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    Report(message="wrong", status=2, time=1234.5).write(path)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(path))
    assert failure.timestamp == 1234
    assert failure.message["extraInfo"]["py_callstack"] == "wrong"  # type: ignore[index]  # torch's annotation is wrong


def test_a_report_understands_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    try:
        raise ValueError("boom")
    except ValueError as error:
        ErrorHandler().record_exception(error)
    report = Report.read(path)
    assert report is not None
    assert (report.message, report.status) == ("ValueError: boom", 1)
    assert report.trace.startswith("Traceback")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", json.dumps({"message": "<NONE>"})])
def test_nothing_to_read_is_no_report(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "error.json"
    if text is not None:
        path.write_text(text)
    assert Report.read(path) is None
