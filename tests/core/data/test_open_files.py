"""Mixtures of many sources keep more files open than a process may at first."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core.data.documents import TokenDocuments
from scaling.core.data.file_dataset import FileDataset
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import StorageError


@pytest.fixture
def few_files() -> Iterator[int]:
    """Let this process have few files more than it has open now; return how many at most."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = max(map(int, os.listdir("/dev/fd"))) + 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    yield soft
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def build(prefix: Path) -> Path:
    with MemoryMapDatasetBuilder(prefix, np.uint16) as builder:
        builder.add([1, 2, 3])
    return prefix


@pytest.mark.parametrize("reader", [MemoryMapDataset, FileDataset])
def test_many_data_sets_can_be_open_at_once(
    reader: Callable[[Path], TokenDocuments], tmp_path: Path, few_files: int
) -> None:
    prefix = build(tmp_path / "corpus")
    many = [reader(prefix) for _ in range(few_files)]
    assert all(documents[0].tolist() == [1, 2, 3] for documents in many)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > few_files


@pytest.mark.parametrize("reader", [MemoryMapDataset, FileDataset])
def test_where_no_more_are_allowed_the_message_says_so(
    reader: Callable[[Path], TokenDocuments], tmp_path: Path, few_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = build(tmp_path / "corpus")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (few_files, few_files))
    with pytest.raises(StorageError, match=r"Too many open files.*; raise the number of files"):
        [documents[0] for documents in [reader(prefix) for _ in range(few_files)]]


@pytest.mark.parametrize(("module", "opening"), [(Path, "open"), (os, "open")], ids=["mapped", "read"])
def test_a_file_without_permission_is_not_blamed_on_mapping(
    module: object, opening: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = build(tmp_path / "corpus")
    reader = MemoryMapDataset if module is Path else FileDataset
    usual = getattr(module, opening)

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "corpus.bin":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *arguments, **options)

    monkeypatch.setattr(module, opening, refuse)
    with pytest.raises(StorageError, match=r"corpus\.bin .*Permission denied.*; check the permissions"):
        reader(prefix)[0]
