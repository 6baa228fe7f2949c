"""Pieces of text are encoded each by itself, and only the first gets the space that a tokenizer puts before texts."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from scaling.transformer.data.records.texts import TextTokenizer
from scaling.transformer.data.tokenizer import Tokenizer

LETTERS = {letter: number for number, letter in enumerate([*"ab▁Ġ", "</s>"])}


def backend(kind: str) -> Backend:
    made = Backend(models.BPE(LETTERS, []))
    if kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    elif kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True)])
    return made


@pytest.mark.parametrize(("kind", "space"), [("metaspace", "▁"), ("prepend", "▁"), ("byte level", "Ġ")])
def test_only_the_first_piece_gets_a_space_put_before(kind: str, space: str) -> None:
    known = Tokenizer.from_str(backend(kind).to_str())
    made = TextTokenizer(known, eos_token="</s>").pieces([["a", "b", " b"], ["b"]])
    names = [["".join(known.token_name(token) or "" for token in piece) for piece in pieces] for pieces in made]
    assert names == [[f"{space}a", "b", f"{space}b"], [f"{space}b"]]


def test_a_space_of_older_files_is_left_out_too() -> None:
    content = json.loads(backend("metaspace").to_str())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    ((first, second),) = TextTokenizer(Tokenizer.from_str(json.dumps(content)), eos_token="</s>").pieces([["a", "a"]])
    assert [first, second] == [[LETTERS["▁"], LETTERS["a"]], [LETTERS["a"]]]
