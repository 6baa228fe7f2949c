"""A manifest comes back as it was written; one that was changed, cut short or made to lie is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.boxes import Box
from scaling.core.checkpoint.manifest import (
    MAX_FILES,
    FileEntry,
    Manifest,
    Part,
    TensorEntry,
    tensors_from_json,
)
from scaling.core.errors import CheckpointError
from scaling.core.storage.json_values import Json

DIGEST = hashlib.sha256(b"").hexdigest()
FILE = "rank_00000_model_000.safetensors"

json_values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def part(start: int, stop: int, *, file: str = FILE, key: str | None = None) -> Part:
    return Part(Box((start,), (stop - start,)), file, f"w[{start}:{stop}]" if key is None else key, DIGEST)


def manifest(*parts: Part, scalars: dict[str, Json] | None = None) -> Manifest:
    files = {one.file: FileEntry(1000, DIGEST) for one in parts}
    return Manifest(5, files, {"w": TensorEntry((4,), "F32", parts)}, scalars or {})


GOOD = manifest(part(0, 1), part(1, 4, file="rank_00001_model_000.safetensors"), scalars={"step": 5, "é": [0.1, None]})


def sealed(change: Callable[[dict[str, Any]], object], original: Manifest = GOOD) -> bytes:
    """Return a manifest changed by someone who also corrected the digest."""
    table = json.loads(original.encode())
    change(table)
    del table["sha256"]
    return seal(json.dumps(table))


def seal(text: str) -> bytes:
    rest = b'",\n' + text[1:].encode()
    digest = hashlib.sha256(b'{\n"sha256": "' + b"0" * 64 + rest).hexdigest()
    return b'{\n"sha256": "' + digest.encode() + rest


@given(st.dictionaries(st.text(), json_values, max_size=4), st.integers(0, 2**60))
def test_a_manifest_comes_back_as_it_was_written(scalars: dict[str, Json], step: int) -> None:
    original = replace(GOOD, step=step, scalars=scalars, removed=("optimizer.",))
    found = Manifest.decode(original.encode())
    assert found == original
    assert found.encode() == original.encode()
    assert json.loads(original.encode())["sha256"] == found.digest


def test_every_single_changed_byte_is_noticed() -> None:
    data = GOOD.encode()
    for position in range(len(data)):
        for change in (1, 32, 128):
            damaged = data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]
            with pytest.raises(CheckpointError, match="is damaged"):
                Manifest.decode(damaged)


@pytest.mark.parametrize("data", [b"", b"{}", GOOD.encode()[:-1], GOOD.encode() + b"\n", GOOD.encode()[:70]])
def test_a_manifest_cut_short_or_long_is_noticed(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="is damaged"):
        Manifest.decode(data)


@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "a/b.safetensors", ".hidden.safetensors", "..", "x.pt"),
        *("x.safetensors/../y", "", "a\\b.safetensors", "a b.safetensors", "a\n.safetensors", "ü.safetensors"),
        "x" * 300 + ".safetensors",
    ],
)
def test_a_file_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    def in_files(table: dict[str, Any]) -> None:
        table["files"][name] = table["files"].pop(FILE)

    def in_part(table: dict[str, Any]) -> None:
        table["tensors"]["w"]["parts"][0]["file"] = name

    for change in (in_files, in_part):
        with pytest.raises(CheckpointError, match="only plain names"):
            Manifest.decode(sealed(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(version=4), "version 4; this library reads 'scaling-checkpoint' versions 1 to 3"),
        (lambda t: t.update(format="other"), "format 'other'"),
        (lambda t: t.update(step=-1), "expected a number"),
        (lambda t: t.update(step=True), "expected a number"),
        (lambda t: t.update(files=[]), "expected an object"),
        (lambda t: t.pop("tensors"), "KeyError: 'tensors'"),
        (lambda t: t.update(scalars=[1]), "expected an object"),
        (lambda t: t["tensors"]["w"].update(dtype="PICKLE"), "unknown data type"),
        (lambda t: t["tensors"]["w"].update(shape=[2**70]), "expected a number"),
        (lambda t: t["tensors"]["w"].update(shape=[1] * 17), "at most 16 numbers"),
        (lambda t: t["tensors"]["w"].update(parts=7), "TypeError"),
        (lambda t: t["tensors"]["w"]["parts"][0].update(sha256="0"), "not a SHA-256 digest"),
        (lambda t: t["tensors"].update({"a\x00b": t["tensors"]["w"]}), "printable characters"),
        (lambda t: t["tensors"].update({"a" * 2000: t["tensors"]["w"]}), "printable characters"),
        (lambda t: t["tensors"]["w"]["parts"].pop(0), "1 elements that no part holds"),
        (lambda t: t["tensors"]["w"]["parts"][0].update(shape=[2]), "overlap"),
        (lambda t: t["tensors"]["w"]["parts"][1].update(shape=[4]), "not within it"),
        (lambda t: t["tensors"]["w"]["parts"][1].update(shape=[3, 1], offset=[1, 0]), "not within it"),
        (lambda t: t["tensors"]["w"]["parts"][0].update(shape=[0]), "empty part"),
        (lambda t: t["files"].pop(FILE), "which the list of files does not have"),
        (lambda t: t["files"].update({"extra.safetensors": t["files"][FILE]}), "extra.safetensors holds no tensor"),
    ],
)
def test_a_manifest_that_lies_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Manifest.decode(sealed(change))


def test_a_key_named_twice_in_a_file_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is said to hold k twice"):
        Manifest.decode(manifest(part(0, 2, key="k"), part(2, 4, key="k")).encode())


@pytest.mark.parametrize("text", ['{"step": 1, "step": 2}', '{"step": NaN}', "[" * 100_000, "{", '{"step": 1}\xff'])
def test_text_that_is_not_proper_json_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Manifest.decode(seal(text))


def test_a_million_files_are_refused_before_they_are_looked_at() -> None:
    files = ",".join(f'"{index}":0' for index in range(10**6))
    head = '{"format":"scaling-checkpoint","version":1,"step":1,"removed":[],"information":{},"scalars":{},'
    with pytest.raises(CheckpointError, match=f"lists 1000000 files; at most {MAX_FILES}"):
        Manifest.decode(seal(head + '"tensors":{},"files":{' + files + "}}"))


def test_a_million_parts_are_counted_before_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.core.checkpoint.manifest.MAX_PARTS", 10)
    with pytest.raises(CheckpointError, match="more than 10 parts"):
        tensors_from_json({"w": {"parts": [None] * 11}})


def test_numbers_that_json_has_no_word_for_are_refused_when_writing() -> None:
    with pytest.raises(CheckpointError, match="cannot be stored as JSON"):
        replace(GOOD, scalars={"loss": float("inf")}).encode()


def test_tensors_can_be_taken_out_with_their_files() -> None:
    other = Part(Box((0,), (2,)), "rank_00000_optimizer_000.safetensors", "optimizer.w", DIGEST)
    both = replace(
        GOOD,
        files={**GOOD.files, other.file: FileEntry(10, DIGEST)},
        tensors={**GOOD.tensors, "optimizer.w": TensorEntry((2,), "F32", (other,))},
    )
    assert both.without("optimizer.") == replace(GOOD, removed=("optimizer.",))
    assert GOOD.bytes == 2000
