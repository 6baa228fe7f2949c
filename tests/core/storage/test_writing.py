"""Files that survive a kill, a full disk and a system that writes less than it was given."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from scaling.core.errors import StorageError
from scaling.core.storage.writing import storage_errors, sync_folder, write_atomically, write_durably, write_json


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_links_and_what_is_no_file_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)
    write_atomically(tmp_path / "pipe", b"content")
    assert (tmp_path / "pipe").is_fifo()
    assert os.read(reader, 100) == b"content"
    os.close(reader)


def test_errors_of_the_system_name_what_was_being_done() -> None:
    reason = r"writing tokens failed: No such file or directory \(/absent/file\)"
    with pytest.raises(StorageError, match=reason), storage_errors("writing tokens"):
        Path("/absent/file").read_bytes()


def test_json_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_write_that_stops_early_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_durably(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    write_durably(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "x", b"second")


@pytest.mark.parametrize(("number", "matters"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_only_a_file_system_that_cannot_sync_folders_is_let_be(
    number: int, matters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)) if matters else nullcontext():
        sync_folder(tmp_path)
