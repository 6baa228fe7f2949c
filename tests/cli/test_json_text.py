"""What is no finite number is null in JSON, wherever it stands; all else is as Python writes it."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from scaling.cli.evaluate import _show
from scaling.cli.json_text import json_text
from scaling.transformer.evaluation.corpus import CorpusLoss


def test_json_has_no_numbers_that_others_cannot_read() -> None:
    value = {"a": [1, 2.5, (nan, "é"), {"b": inf, "c": -inf, "d": None, "e": True}], "f": "NaN"}
    expected = {"a": [1, 2.5, [None, "é"], {"b": None, "c": None, "d": None, "e": True}], "f": "NaN"}
    assert json.loads(json_text(value)) == expected
    plain = {"a": [1, 2.5, "é"]}
    assert json_text(plain, indent=2) == json.dumps(plain, indent=2)
    assert json_text(plain, ascii_only=False) == json.dumps(plain, ensure_ascii=False)


def test_a_perplexity_beyond_all_numbers_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    loss = CorpusLoss("data", "step", nats=1600.0, weight=2.0, tokens=2, bytes=0.0, samples=1)
    _show([loss], None, as_json=True)

    def refused(name: str) -> None:
        raise AssertionError(name)

    (row,) = json.loads(capsys.readouterr().out, parse_constant=refused)["data"]
    assert (row["loss"], row["perplexity"], row["bits_per_byte"]) == (800.0, None, None)
