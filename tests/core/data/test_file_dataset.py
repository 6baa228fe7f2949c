"""Files on an unreliable file system are read again, with patience that ends."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.core.data.file_dataset import FileDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import DataError, StorageError


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    with MemoryMapDatasetBuilder(tmp_path / "corpus") as builder:
        builder.add([1, 2, 3])
        builder.add(range(100))
    return tmp_path / "corpus"


class FlakyReads:
    """Replaces `os.pread`: each next read meets the next accident, and all later ones succeed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.accidents: Iterator[OSError | int] = iter(())
        self.pread = os.pread
        monkeypatch.setattr(os, "pread", self)

    def __call__(self, descriptor: int, size: int, offset: int) -> bytes:
        match next(self.accidents, None):
            case OSError() as error:
                raise error
            case int() as most:
                return self.pread(descriptor, min(size, most), offset)
        return self.pread(descriptor, size, offset)


def stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_stale_handles_empty_and_short_reads_are_repeated(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = FileDataset(prefix, load_index_to_memory=True, retry_delays=(0.0, 0.0))
    reads = FlakyReads(monkeypatch)
    reads.accidents = iter([stale(), 0, 7, stale(), 100])
    assert documents[1].tolist() == list(range(100))
    assert next(reads.accidents, "used up") == "used up"


def test_patience_ends_and_names_the_file(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = FileDataset(prefix, load_index_to_memory=True, retry_delays=(0.0, 0.0))
    reads = FlakyReads(monkeypatch)
    reads.accidents = iter([stale(), stale(), stale()])
    with pytest.raises(StorageError, match=r"corpus\.bin cannot be read at byte 12, after 3 attempts: .*[Ss]tale"):
        documents[1]


def test_waiting_grows_between_attempts(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    documents = FileDataset(prefix, load_index_to_memory=True)
    waits.clear()
    reads = FlakyReads(monkeypatch)
    reads.accidents = iter([stale()] * 5)
    assert documents[0].tolist() == [1, 2, 3]
    assert waits == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_lasting_errors_are_not_repeated(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = FileDataset(prefix)
    reads = FlakyReads(monkeypatch)
    reads.accidents = iter([OSError(errno.EACCES, "Permission denied")])
    with pytest.raises(StorageError, match="Permission denied"):
        documents[0]


def test_a_file_that_is_another_one_after_opening_it_again_is_refused(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = FileDataset(prefix, load_index_to_memory=True, retry_delays=(0.0,))
    documents[0]
    Path(f"{prefix}.bin").write_bytes(b"shorter")
    reads = FlakyReads(monkeypatch)
    reads.accidents = iter([stale()])
    with pytest.raises(DataError, match="had 412 bytes when it was opened first and now has 7"):
        documents[1]
