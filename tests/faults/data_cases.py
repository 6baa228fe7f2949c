"""Group D: token files that are damaged or lie, and text files with every common defect."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from scaling.cli.data import app
from scaling.core import DataError, MemoryMapDataset, MemoryMapDatasetBuilder, ScalingError
from tests.faults.engine import Scene, layout, texts
from tests.faults.matrix import Case, End, Refuse, Survive
from tests.faults.storage_cases import rewrite

HEADER = 34
"""Bytes of a Megatron index before its arrays."""
CODES = {"int32": 4, "uint16": 8}
DOCUMENTS = 40


def write_megatron(prefix: Path, *, dtype: str = "uint16", token: int = 7) -> None:
    """Write documents of three tokens each in Megatron's format; `token` is one of them."""
    tokens = np.arange(3 * DOCUMENTS) % 200 + 1
    tokens[50] = token
    tokens.astype(f"<{np.dtype(dtype).str[1:]}").tofile(f"{prefix}.bin")
    sizes = np.full(DOCUMENTS, 3, dtype="<i4")
    pointers = np.arange(DOCUMENTS, dtype="<i8") * 3 * np.dtype(dtype).itemsize
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype], DOCUMENTS, DOCUMENTS + 1)
    borders = np.arange(DOCUMENTS + 1, dtype="<i8")
    Path(f"{prefix}.idx").write_bytes(header + sizes.tobytes() + pointers.tobytes() + borders.tobytes())


def put(offset: int, new: bytes) -> Callable[[Path], object]:
    """Return what overwrites a part of the index."""
    return lambda prefix: rewrite(Path(f"{prefix}.idx"), lambda old: old[:offset] + new + old[offset + len(new) :])


def count(number: int) -> Callable[[Path], object]:
    """Return what claims another number of sequences and documents."""
    return put(18, struct.pack("<QQ", number, number + 1))


MEGATRON: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "bad magic": (put(0, b"TNTIDX\x00\x00\x00"), "begins with"),
    "wrong version": (put(9, struct.pack("<Q", 2)), "has version 2"),
    "negative length": (put(HEADER + 4, struct.pack("<i", -3)), r"idx .*damaged|corrupt"),
    "length past the end": (put(HEADER + 4 * (DOCUMENTS - 1), struct.pack("<i", 4)), r"idx .*damaged|corrupt"),
    "starts out of order": (put(HEADER + 4 * DOCUMENTS + 8, struct.pack("<q", 0)), r"idx .*damaged|corrupt"),
    "10^6 sequences in a small file": (count(10**6), "1000000 sequences with 1000001 document borders take 20000042"),
    "2^62 sequences": (count(2**62), "4611686018427387904 sequences"),
    "another type than claimed": (put(17, bytes([CODES["int32"]])), r"idx .*damaged|corrupt"),
}
OURS: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "truncated tokens": (lambda prefix: os.truncate(f"{prefix}.bin", 1001), r"\.bin .*it has 1001 bytes"),
    "empty tokens": (
        lambda prefix: os.truncate(f"{prefix}.bin", 0),
        r"\.bin is damaged.* (0 bytes|empty)",
    ),
    "digest that does not match": (
        lambda prefix: rewrite(Path(f"{prefix}.idx"), swapped_sizes),
        "does not match the digest recorded",
    ),
}

LINES = [json.dumps({"text": text}).encode() for text in texts(12)]
"""A text file without defects."""


def second(line: bytes) -> bytes:
    """Return the text file with another second line."""
    return b"\n".join([LINES[0], line, *LINES[2:], b""])


BAD_TEXT: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "bad JSON": (lambda: second(b'{"text": "x"'), r"line 2 \(byte \d+\): not JSON"),
    "invalid UTF-8": (lambda: second(b'{"text": "\xff\xfe"}'), r"line 2 \(byte \d+\): not UTF-8"),
    "NUL": (lambda: second(b'{"text": "a\\u0000b"}'), r"line 2 \(byte \d+\): a NUL character"),
    "half a surrogate pair": (lambda: second(b'{"text": "a\\ud800b"}'), r"line 2 \(byte \d+\): half a surrogate pair"),
    "line of 50 MB": (
        lambda: second(b'{"text": "' + b"x" * 50_000_000 + b'"}'),
        r"line 2 \(byte \d+\): longer than 33554432 bytes",
    ),
    "missing key": (lambda: second(b'{"body": "x"}'), r"line 2 \(byte \d+\): no key 'text'; the keys are 'body'"),
}
HARMLESS_TEXT: Mapping[str, Callable[[], bytes]] = {
    "byte-order mark": lambda: b"\xef\xbb\xbf" + b"\n".join([*LINES, b""]),
    "CRLF": lambda: b"\r\n".join([*LINES, b""]),
    "empty text": lambda: b"\n".join([LINES[0], b'{"text": ""}', *LINES[1:], b""]),
    "no newline at the end": lambda: b"\n".join(LINES),
}


def cases() -> Iterator[Case]:
    """Yield the 22 cases."""
    for name, (damage, message) in MEGATRON.items():
        yield Case("D", f"Megatron index: {name}", Refuse(2, message), partial(damaged_megatron, damage))
    for name, (damage, message) in OURS.items():
        yield Case("D", f"memory map: {name}", Refuse(2, message), partial(damaged_memory_map, damage))
    for name, (content, message) in BAD_TEXT.items():
        yield Case("D", f"jsonl: {name}", Refuse(2, message), partial(tokenized, content))
    for name, content in HARMLESS_TEXT.items():
        yield Case("D", f"jsonl: {name}", Survive(), partial(same_tokens, content))
    yield Case("D", "tokens that are none", Refuse(2, "token 300, but the vocabulary is 0 to 299"), impossible_tokens)


def swapped_sizes(index: bytes) -> bytes:
    """Move the border of two documents: consistent, but not what was written."""
    pairs = np.frombuffer(index, dtype="<i8").copy()
    pairs[1] -= 1
    pairs[2] -= 1
    pairs[3] += 1
    changed: bytes = pairs.tobytes()
    return changed


def damaged_megatron(damage: Callable[[Path], object], scene: Scene) -> End:
    """Train on a Megatron data set after damaging its index."""
    prefix = scene.folder / "megatron"
    write_megatron(prefix)
    damage(prefix)
    return train_on(prefix, scene)


def damaged_memory_map(damage: Callable[[Path], object], scene: Scene) -> End:
    """Train on a memory map after damaging it."""
    prefix = scene.folder / "corpus"
    for suffix in (".bin", ".idx", ".meta.json"):
        Path(f"{prefix}{suffix}").write_bytes(Path(f"{scene.source.prefix}{suffix}").read_bytes())
    damage(prefix)
    return train_on(prefix, scene)


def train_on(prefix: Path, scene: Scene) -> End:
    """Start a training on a data set."""
    scene.watch()
    return scene.run(layout(), {"data.data_prefixes": [str(prefix)]})


def tokenized(content: Callable[[], bytes], scene: Scene) -> End:
    """Tokenize a text file by the command; what a stopped run may go on from does not count as output."""
    text = scene.folder / "text.jsonl"
    text.write_bytes(content())
    scene.ignored = ("tokens.partial",)
    scene.watch()
    output = scene.folder / "tokens"
    arguments = ["tokenize", str(text), "-o", str(output), "-t", str(scene.source.tokenizer), "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    text.write_bytes(b"")  # 50 MB per case are better not kept
    scene.forget(text)
    if isinstance(result.exception, ScalingError):
        return End(result.exception.exit_status, str(result.exception))
    if result.exit_code != 0:
        return End(result.exit_code, repr(result.exception))
    documents = [document.tolist() for document in MemoryMapDataset(output)]
    return End(0, state={"documents": documents})


def same_tokens(content: Callable[[], bytes], scene: Scene) -> End:
    """The tokens are those of the file without the peculiarity."""
    clean = Scene(scene.folder / "clean", scene.undisturbed, scene.wide)
    clean.folder.mkdir()
    end = tokenized(lambda: b"\n".join([*LINES, b""]), clean)
    assert end.state is not None, end.message
    scene.require(len(end.state["documents"]) == len(LINES), "the comparison is not what it should be")
    scene.expected = end.state
    return tokenized(content, scene)


def impossible_tokens(scene: Scene) -> End:
    """Too large for its type (refused when written), negative, and outside the vocabulary (refused when opened)."""
    prefix = scene.folder / "megatron"
    try:
        with MemoryMapDatasetBuilder(prefix, np.uint16) as builder:
            builder.add([1, 70_000])
    except DataError as error:
        scene.require("70000" in str(error), str(error))
    scene.require(not list(scene.folder.iterdir()), "a memory map was left although it was refused")
    write_megatron(prefix, dtype="int32", token=-5)
    end = train_on(prefix, scene)
    scene.require(end.status == 2 and "token -5" in end.message and not scene.written(), end.message)
    write_megatron(prefix, token=300)
    return train_on(prefix, scene)
