"""A data file of a checkpoint: any box is read into any memory, and nothing but what the manifest names."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.boxes import Box, whole
from scaling.core.checkpoint import disk, files
from scaling.core.checkpoint.files import TYPE_NAMES, Piece, TensorFile, constant, write_file
from scaling.core.errors import CheckpointError
from tests.core.test_boxes import boxes_within


def stored(folder: Path, tensor: torch.Tensor) -> TensorFile:
    shape = tuple(tensor.shape)
    piece = Piece("w", shape, whole(shape), TYPE_NAMES[tensor.dtype], constant(tensor))
    (folder / "f.safetensors").unlink(missing_ok=True)
    entry, _ = write_file(folder / "f.safetensors", [piece], before=lambda piece: None)
    return TensorFile(folder, "f.safetensors", entry)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(st.lists(st.integers(1, 7), max_size=4).map(tuple), st.integers(1, 64), st.integers(1, 200), st.data())
def test_any_box_is_read_into_any_kind_of_memory(
    folder: Path, shape: tuple[int, ...], chunk: int, span: int, data: st.DataObject
) -> None:
    """Small chunks and spans drive every way of reading: in one go, by rows, by columns, one row at a time."""
    tensor = torch.arange(whole(shape).size, dtype=torch.float32).reshape(shape)
    box = data.draw(boxes_within(shape))
    expected = tensor[box.slices(whole(shape))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        file = stored(folder, tensor)
        patch.setattr(files, "CHUNK_BYTES", chunk)
        patch.setattr(files, "SPAN_BYTES", span)
        direct = torch.full(box.shape, -1.0)
        file.read_into("w", box, direct)
        assert torch.equal(direct, expected)
        converted = torch.full(box.shape, -1.0, dtype=torch.float64)
        file.read_into("w", box, converted)
        assert torch.equal(converted, expected.double())
        strided = torch.full((*box.shape[::-1], 2), -1.0)[..., 0].permute(tuple(reversed(range(len(shape)))))
        file.read_into("w", box, strided)
        assert torch.equal(strided, expected)
        file.close()


def test_only_the_wanted_slices_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(64, 65536)
    read: list[int] = []
    preadv = os.preadv

    def noted(descriptor: int, buffers: list[memoryview], start: int) -> int:
        read.append(preadv(descriptor, buffers, start))
        return read[-1]

    monkeypatch.setattr(os, "preadv", noted)
    with stored(tmp_path, tensor) as file:
        rows, columns = torch.empty(8, 65536), torch.empty(64, 1024)
        file.read_into("w", Box((8, 0), (8, 65536)), rows)
        file.read_into("w", Box((0, 4096), (64, 1024)), columns)
        assert torch.equal(rows, tensor[8:16])
        assert torch.equal(columns, tensor[:, 4096:5120])
        assert sum(read) == rows.nbytes + columns.nbytes


def test_no_buffer_is_larger_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(40, 1000)
    sizes = []
    empty = torch.empty

    def counted(*arguments: object, **options: object) -> torch.Tensor:
        found: torch.Tensor = empty(*arguments, **options)  # type: ignore[call-overload]
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(files, "CHUNK_BYTES", 8192)
    with stored(tmp_path, tensor) as file:
        into = torch.zeros(40, 1000, dtype=torch.float64)
        narrow = torch.zeros(40, 10, dtype=torch.float64)
        monkeypatch.setattr(torch, "empty", counted)
        file.read_into("w", whole((40, 1000)), into)
        file.read_into("w", Box((0, 5), (40, 10)), narrow)
    assert torch.equal(into, tensor.double())
    assert torch.equal(narrow, tensor[:, 5:15].double())
    assert max(sizes) <= 8192


def test_a_file_that_is_not_the_one_in_the_manifest_is_refused(tmp_path: Path) -> None:
    with stored(tmp_path, torch.arange(4.0)) as file:
        path = file.path
    entry, _ = write_file(
        tmp_path / "g.safetensors",
        [Piece("other", (4,), whole((4,)), "F32", constant(torch.zeros(4)))],
        before=lambda piece: None,
    )
    with pytest.raises(CheckpointError, match=r"bytes, the manifest says|another header"):
        TensorFile(tmp_path, path.name, entry)
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * entry.bytes)
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors has another header .*: its header claims"):
        TensorFile(tmp_path, "damaged.safetensors", entry)
    with pytest.raises(CheckpointError, match="is missing"):
        TensorFile(tmp_path, "absent.safetensors", entry)
    (tmp_path / "link.safetensors").symlink_to(path)
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        TensorFile(tmp_path, "link.safetensors", entry)
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("folder.safetensors", "pipe.safetensors"):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            TensorFile(tmp_path, name, entry)


def test_a_file_cut_short_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    with stored(tmp_path, torch.arange(100.0)) as file:
        os.truncate(file.path, 200)
        with pytest.raises(CheckpointError, match="ends before byte"):
            file.read_into("w", whole((100,)), torch.zeros(100))


def test_small_files_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(CheckpointError, match="11 bytes; at most 10"):
        disk.read_small(tmp_path / "x", 10)


def test_no_more_waits_to_be_hashed_than_fits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, hashed, waiting = 0, 0, []
    digest = files._sha256

    def load() -> torch.Tensor:
        nonlocal loaded
        loaded += 1
        waiting.append(loaded - hashed)
        return torch.full((256,), loaded, dtype=torch.float32)

    def slowly(data: memoryview) -> str:
        nonlocal hashed
        time.sleep(0.002)
        found = digest(data)
        hashed += 1
        return found

    monkeypatch.setattr(files, "HASHERS", 1)
    monkeypatch.setattr(files, "AHEAD_BYTES", 3 * 1024)
    monkeypatch.setattr(files, "_sha256", slowly)
    pieces = [Piece(f"w{number}", (256,), whole((256,)), "F32", load) for number in range(20)]
    _, digests = write_file(tmp_path / "f.safetensors", pieces, before=lambda piece: None)
    assert max(waiting) <= 3
    assert digests == [
        hashlib.sha256(torch.full((256,), number, dtype=torch.float32).numpy().tobytes()).hexdigest()
        for number in range(1, 21)
    ]
