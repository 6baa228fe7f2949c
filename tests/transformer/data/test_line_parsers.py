"""The two parsers of JSON lines, a fast one and the one that says what is wrong, read the same documents."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from scaling.transformer.data import readers
from scaling.transformer.data.readers import Piece, PieceReader


def test_lines_read_alike_whether_or_not_the_faster_parser_accepts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines damaged at random: nothing is a document, or is none, because of who parses it."""
    whole = (
        b'{"text": "a\\n\\u00e9\\ud83d\\ude42 \xc3\xa9", "n": [1, -2.5e-3, NaN, true, null, {"text": 1}]}',
        b'{"text": "x", "text": "y", "n": ' + b"1" * 5000 + b"}",
        b' {"a": {"text": "b"}, "text": "c", "n": ' + b"[" * 300 + b"]" * 300 + b"} ",
        b'{"text": "\\ud800", "other": "\\u0000"}',
        b'\xef\xbb\xbf{"text": "\x7f\xc2\x85 \xed\xa0\x80"}',
    )
    single = b'{}[]",:\\u0019eE+-. \t\r\x0b\x00\x01\xff'
    parts = [*(bytes([byte]) for byte in single), b"NaN", b'"text":', b"\\ud83d", b"\\u0000"]
    random = Random(1)
    lines = []
    for _ in range(3000):
        line = bytearray(random.choice(whole))
        for _ in range(random.randrange(4)):
            place = random.randrange(len(line) + 1)
            line[place : place + random.randrange(3)] = random.choice([b"", *parts])
        lines.append(bytes(line))
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = list(PieceReader(Piece(path)))
    monkeypatch.setattr(readers, "from_json", lambda *_, **__: None)
    assert found == list(PieceReader(Piece(path)))
    assert 100 < sum(isinstance(document, str) for document in found) < 2900
