"""A memory map is complete under its name or not there: kills, full disks, and builders that meet."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core import faults
from scaling.core.data.formats import recorded_eod_token_id
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.data.memory_map_meta import MemoryMapMeta
from scaling.core.errors import DataError, StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


COMPLETE = ["corpus.bin", "corpus.idx", "corpus.meta.json"]


def build(prefix: Path, documents: Iterable[Sequence[int]], **options: Any) -> None:
    with MemoryMapDatasetBuilder(prefix, **options) as builder:
        for document in documents:
            builder.add(document)


def build_and_be_killed(prefix: Path, fault: str | None) -> None:
    """Run a build in a process of its own that SIGKILL ends at a fault point, or before it finalizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child only writes files
        child = os.fork()
    if child == 0:
        faults.forget_passages()
        os.environ[faults.VARIABLE] = fault or ""
        builder = MemoryMapDatasetBuilder(prefix)
        builder.add([7, 7, 7])
        if fault is not None:
            builder.finalize()
        os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (9 if fault is None else -9)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_any_integer_type_will_do(dtype: str, index_dtype: str, tmp_path: Path) -> None:
    build(tmp_path / "corpus", [[0, 255], [17]], dtype=dtype, index_dtype=index_dtype)
    documents = MemoryMapDataset(tmp_path / "corpus")
    assert documents.dtype == np.dtype(dtype)
    assert [document.tolist() for document in documents] == [[0, 255], [17]]
    assert Path(tmp_path / "corpus.bin").stat().st_size == 3 * np.dtype(dtype).itemsize


def test_folders_are_made_and_only_the_three_files_remain(tmp_path: Path) -> None:
    build(tmp_path / "a" / "b" / "corpus", [[1]])
    assert names(tmp_path / "a" / "b") == COMPLETE


def test_the_meta_file_records_what_was_written(tmp_path: Path) -> None:
    build(tmp_path / "corpus", [[1, 2], [], [9], []], tokenizer_sha256="abc", eod_token_id=9)
    assert recorded_eod_token_id(tmp_path / "corpus") == 9
    meta = MemoryMapMeta.load(tmp_path / "corpus.meta.json")
    assert (meta.document_count, meta.token_count, meta.max_token, meta.dropped_documents) == (2, 3, 9, 2)
    assert (meta.dtype, meta.index_dtype, meta.tokenizer_sha256) == ("int32", "int64", "abc")
    (tmp_path / "corpus.meta.json").write_text(meta.to_json().replace('"eod_token_id": 9', '"eod_token_id": 8'))
    assert recorded_eod_token_id(tmp_path / "corpus") is None  # damaged
    assert recorded_eod_token_id(tmp_path / "nowhere") is None


def test_meta_files_of_before_ends_were_recorded_are_read(tmp_path: Path) -> None:
    build(tmp_path / "corpus", [[1, 2]])
    path = tmp_path / "corpus.meta.json"
    content = json.loads(path.read_text())
    del content["eod_token_id"], content["meta_sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "meta_sha256": digest}))
    assert MemoryMapMeta.load(path).eod_token_id is None


@pytest.mark.parametrize(
    ("tokens", "dtype", "message"),
    [
        ([70000], "uint16", r"document 1 contains token 70000, which uint16 cannot hold \(0 to 65535\).* dtype uint32"),
        (np.array([2**33]), "int32", "contains token 8589934592, which int32 cannot hold.*int64|uint64"),
        ([3, -1], "int32", "contains token -1; token ids are not negative"),
        ([1.5], "int32", "array of float64"),
        ([True], "int32", "array of bool"),
        ([[1, 2]], "int32", r"shape \(1, 2\)"),
        ([2**70], "int32", "array of object"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_not_wrapped(tokens: Any, dtype: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        build(tmp_path / "corpus", [[1], tokens], dtype=dtype)
    assert names(tmp_path) == []


def test_an_index_type_too_small_for_the_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an index of int8"):
        build(tmp_path / "corpus", [range(128)], index_dtype="int8")


def test_types_that_are_not_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'float32' is not an integer type"):
        MemoryMapDatasetBuilder(tmp_path / "corpus", np.float32)


def test_a_build_without_tokens_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no document has any token \(1 were empty\)"):
        build(tmp_path / "corpus", [[]])
    assert names(tmp_path) == []


def test_an_error_while_building_leaves_nothing(tmp_path: Path) -> None:
    def documents() -> Iterator[list[int]]:
        yield [1]
        raise KeyError

    with pytest.raises(KeyError):
        build(tmp_path / "corpus", documents())
    assert names(tmp_path) == []


def test_nothing_opens_before_the_build_is_final(tmp_path: Path) -> None:
    builder = MemoryMapDatasetBuilder(tmp_path / "corpus")
    builder.add([1])
    with pytest.raises(DataError, match="does not exist"):
        MemoryMapDataset(tmp_path / "corpus")
    builder.finalize()
    builder.finalize()
    assert len(MemoryMapDataset(tmp_path / "corpus")) == 1


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".meta.json"])
def test_existing_files_are_never_overwritten(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"corpus{suffix}").write_text("precious")
    with pytest.raises(DataError, match=f"corpus{suffix} exists already"):
        MemoryMapDatasetBuilder(tmp_path / "corpus")
    assert names(tmp_path) == [f"corpus{suffix}"]
    assert (tmp_path / f"corpus{suffix}").read_text() == "precious"


def test_two_builds_of_the_same_data_set_do_not_mix(tmp_path: Path) -> None:
    with MemoryMapDatasetBuilder(tmp_path / "corpus") as builder:
        builder.add([1])
        with pytest.raises(DataError, match="another process is building"):
            MemoryMapDatasetBuilder(tmp_path / "corpus")
    assert names(tmp_path) == COMPLETE
    with pytest.raises(DataError, match="exists already"):
        MemoryMapDatasetBuilder(tmp_path / "corpus")


def test_a_builder_that_came_too_late_leaves_the_next_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "corpus"
    first = MemoryMapDatasetBuilder(prefix)
    first.add([1])
    later: list[MemoryMapDatasetBuilder] = []
    lock = fcntl.flock

    def finish_remove_and_build_again(descriptor: int, operation: int) -> None:
        """Happen to the late one between opening the lock file and locking it."""
        monkeypatch.setattr(fcntl, "flock", lock)
        first.finalize()
        for name in COMPLETE:
            (tmp_path / name).unlink()
        later.append(MemoryMapDatasetBuilder(prefix))
        later[0].add([2, 3])
        prefix.with_name("corpus.bin").touch()  # so that the late one finds something in its way
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", finish_remove_and_build_again)
    with pytest.raises(DataError, match="another process was building"):
        MemoryMapDatasetBuilder(prefix)
    with pytest.raises(DataError, match="another process is building"):
        MemoryMapDatasetBuilder(prefix)
    later[0].finalize()
    assert [document.tolist() for document in MemoryMapDataset(prefix)] == [[2, 3]]


@pytest.mark.parametrize("fault", [None, *(f"data.build.rename:{passage}=kill" for passage in (1, 2, 3))])
def test_a_killed_build_leaves_nothing_that_opens_and_the_next_one_succeeds(fault: str | None, tmp_path: Path) -> None:
    build_and_be_killed(tmp_path / "corpus", fault)
    with pytest.raises(DataError, match="does not exist"):
        MemoryMapDataset(tmp_path / "corpus")
    build(tmp_path / "corpus", [[1, 2]])
    assert names(tmp_path) == COMPLETE
    MemoryMapDataset(tmp_path / "corpus").verify()


def test_files_beside_a_killed_build_are_not_taken_for_its_own(tmp_path: Path) -> None:
    build_and_be_killed(tmp_path / "corpus", "data.build.rename:1=kill")
    (tmp_path / "corpus.bin").write_text("precious")
    with pytest.raises(DataError, match=r"corpus\.bin exists already"):
        MemoryMapDatasetBuilder(tmp_path / "corpus")
    assert (tmp_path / "corpus.bin").read_text() == "precious"


@pytest.mark.parametrize("passage", [1, 2, 3])
def test_a_failure_while_renaming_leaves_nothing(passage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults.forget_passages()
    monkeypatch.setenv(faults.VARIABLE, f"data.build.rename:{passage}=eio")
    with pytest.raises(StorageError, match="corpus cannot be written"):
        build(tmp_path / "corpus", [[1]])
    assert names(tmp_path) == []


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="No space left on device; make room"):
        build(tmp_path / "corpus", [[1]])
    assert names(tmp_path) == []
