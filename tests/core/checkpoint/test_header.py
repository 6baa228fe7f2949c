"""Headers are those of the safetensors library, both ways, and malformed ones are refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from scaling.core.boxes import whole
from scaling.core.checkpoint.files import TORCH_TYPES, Piece, constant, write_file
from scaling.core.checkpoint.header import ITEM_BYTES, encode_header, read_header, tensor_bytes
from scaling.core.errors import CheckpointError

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tables = st.dictionaries(names, st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes), max_size=6)


def raw(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, *, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@given(tables)
def test_a_header_comes_back_as_it_was_written(table: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    head = encode_header((name, dtype, shape) for name, (dtype, shape) in table.items())
    size = sum(tensor_bytes(dtype, shape) for dtype, shape in table.values())
    found = read_header(io.BytesIO(head + bytes(size)), len(head) + size)
    assert found.raw == head
    assert {name: (slot.dtype, slot.shape) for name, slot in found.slots.items()} == table
    assert len(head) % 64 == 0


def test_the_safetensors_library_reads_what_is_written_here(tmp_path: Path) -> None:
    values = {name: torch.arange(6).to(dtype).reshape(2, 3) for name, dtype in TORCH_TYPES.items() if name != "BOOL"}
    pieces = [Piece(name, (2, 3), whole((2, 3)), name, constant(value)) for name, value in values.items()]
    pieces.sort(key=lambda piece: -ITEM_BYTES[piece.dtype])
    write_file(tmp_path / "a.safetensors", pieces, before=lambda piece: None)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == set(values)
        for name, value in values.items():
            found = file.get_tensor(name)
            assert found.dtype == value.dtype
            assert torch.equal(found.view(torch.uint8), value.view(torch.uint8)), name


def test_what_the_safetensors_library_writes_is_read_here(tmp_path: Path) -> None:
    save_file({"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int64)}, tmp_path / "x", metadata={"note": "hello"})
    data = (tmp_path / "x").read_bytes()
    found = read_header(io.BytesIO(data), len(data))
    assert {name: slot.shape for name, slot in found.slots.items()} == {"a": (2,), "b": (3,)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "claims 0 bytes in a file of 0"),
        (raw({}, length=2**60), "claims 1152921504606846976 bytes"),
        (raw({}, length=5), "claims 5 bytes in a file of 10"),
        (raw(b"\xff\xfe{}"), "UnicodeDecodeError"),
        (raw([]), "not a JSON object"),
        (raw(b"[" * 100_000), "RecursionError"),
        (raw({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "puts 'b' at bytes"),
        (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "puts 'b' at bytes"),
        (raw({"a": entry(0, 4, shape=(2,))}, bytes(4)), "puts 'a' at bytes"),
        (raw({"a": entry(0, 4, shape=(2**40, 2**40))}, bytes(4)), "puts 'a' at bytes"),
        (raw({"a": entry(0, 4)}, bytes(5)), "describes .* bytes, the file has"),
        (raw({"a": entry(0, 4)}, bytes(3)), "describes .* bytes, the file has"),
        (raw({"a": entry(0, 4, dtype="OBJECT")}, bytes(4)), "unknown data type 'OBJECT'"),
        (raw({"a": entry(0, 4, shape=(-1,))}, bytes(4)), "reasonable size"),
        (raw({"a": entry(0, 4, shape=(True,))}, bytes(4)), "reasonable size"),
        (raw({"a": {"dtype": "F32"}}), "KeyError"),
        (raw({"a": 7}), "TypeError"),
        (raw(b'{"a": 1, "a": 2}'), "'a' appears twice"),
    ],
)
def test_a_malformed_header_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(io.BytesIO(data), len(data))
