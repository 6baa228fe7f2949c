"""Safetensors files of other programs are read without trust, and what is written, they can read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaling.core.boxes import whole
from scaling.core.checkpoint.files import constant
from scaling.core.checkpoint.plain_files import PlainTensor, open_plain, write_plain
from scaling.core.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bfloat16()}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_files_of_the_library_are_read_also_through_links(path: Path) -> None:
    link = path.parent / "snapshot" / "m.safetensors"
    link.parent.mkdir()
    link.symlink_to(path)
    for given in (path, link):
        with open_plain(given) as file:
            values = torch.empty(2, 3)
            file.read_into("a", whole((2, 3)), values)
            assert torch.equal(values, torch.arange(6.0).reshape(2, 3))
            assert file.slots["b"].dtype == "BF16"


def test_tensors_are_written_in_pieces(tmp_path: Path) -> None:
    a, b = torch.randn(4, 3), torch.randn(5).bfloat16()
    tensors = [
        PlainTensor("a", torch.float32, (4, 3), [constant(a[:1]), constant(a[1:])]),
        PlainTensor("b", torch.bfloat16, (5,), [constant(b)]),
        PlainTensor("none", torch.float32, (0, 3), []),
    ]
    write_plain(tmp_path / "m.safetensors", tensors)
    found = load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["a"], a)
    assert torch.equal(found["b"], b)
    assert found["none"].shape == (0, 3)
    with pytest.raises(FileExistsError):
        write_plain(tmp_path / "m.safetensors", tensors)


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return len(text).to_bytes(8, "little") + text


def slot(*offsets: int, dtype: str = "U8", shape: tuple[int, ...] = (4,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "claims 0 bytes in a file of 0"),
        ((2**40).to_bytes(8, "little") + b"{}", "claims 1099511627776 bytes in a file of 10"),
        (header({"a": slot(0, 4)}) + b"abc", "describes .* bytes, the file has"),
        (header({"a": slot(0, 4)}) + b"abcde", "describes .* bytes, the file has"),
        (header({"a": slot(0, 4), "b": slot(2, 6)}) + b"abcdef", "puts 'b' at bytes"),
        (header({"a": slot(4, 8)}) + b"abcdefgh", "puts 'a' at bytes"),
        (header({"a": slot(0, 4, shape=(5,))}) + b"abcd", "puts 'a' at bytes"),
        (header({"a": slot(0, -4)}) + b"abcd", "not a number of reasonable size"),
        (header({"a": slot(0, 4, dtype="F4")}) + b"abcd", "unknown data type 'F4'"),
        (header(b'{"a": 1, "a": 2}'), "'a' appears twice"),
        (header(b"[" * 100_000), "cannot be read"),
        (b"\x80\x02}q\x00.", "not a safetensors file"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as refused:
        open_plain(path)
    assert str(refused.value).startswith(f"{path} is damaged or cut off: ")
    assert "copy it again" in str(refused.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for name, reason in (("nothing", "is missing"), ("pipe", "not a regular file"), ("circle", "is missing")):
        with pytest.raises(CheckpointError, match=reason):
            open_plain(tmp_path / name)


def test_a_file_that_changed_since_is_noticed(path: Path) -> None:
    with open_plain(path) as file:
        entry = file.entry
    open_plain(path, known=entry).close()
    save_file({"c": torch.ones(3, 2), "b": torch.ones(3).bfloat16()}, path)
    with pytest.raises(CheckpointError, match="it was changed while it was read"):
        open_plain(path, known=entry)
