"""gigatoken encodes where its tokens are those of `tokenizers`, and the files are the same whoever encodes."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core.errors import DataError
from scaling.transformer.data import encoders, engine
from scaling.transformer.data.encoders import Encoded, Engine, FastEncoder, SlowEncoder
from scaling.transformer.data.engine import CHARACTERS, ODD, choose_engine, sample_of
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer

NEW = "a\U00011dbcb 1\U00016ebc2 \u088f"
TEXTS = [
    *ODD,
    "a <|endoftext|> b",
    "<|endoftext|>",
    NEW,
    *(f"number {number} of the texts " * 40 for number in range(50)),
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(TEXTS, 600).save(path)
    return path


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(tokenizer_file, plain_text=True)


class Differing:
    """An encoder that differs in the texts that hold a word."""

    def __init__(self, tokenizer: Tokenizer, word: str = "number 7 ") -> None:
        self._slow, self._word = SlowEncoder(tokenizer), word

    def encode(self, texts: Sequence[str]) -> Encoded:
        encoded = self._slow.encode(texts)
        at = np.cumsum(encoded.lengths) - 1
        for number, text in enumerate(texts):
            if self._word in text:
                encoded.tokens[at[number]] += 1
        return encoded


class Panic(BaseException):
    """What Rust raises through Python where it panics."""


def test_files_are_the_same_byte_for_byte_whoever_encodes(tmp_path: Path, tokenizer_file: Path) -> None:
    records = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(records)
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    (tmp_path / "one.txt").write_text("a text")
    written = []
    for asked in Engine:
        for workers in (1, 2):
            output = tmp_path / "out" / f"{asked.value}{workers}"
            rules = TokenizeOptions(tokenizer_file, engine=asked)
            result = tokenize_files([tmp_path], output, rules, workers=workers, chunk_bytes=20000)
            used = Engine.TOKENIZERS if asked is Engine.TOKENIZERS else Engine.GIGATOKEN
            assert result.engine.startswith(f"encoded by {used.value}: ")
            written.append(
                [output.with_name(output.name + suffix).read_bytes() for suffix in (".bin", ".idx", ".meta.json")]
            )
    assert all(files == written[0] for files in written)


def test_texts_about_which_the_two_may_differ_are_encoded_alike(tokenizer: Tokenizer) -> None:
    fast, slow = FastEncoder(tokenizer).encode(TEXTS), SlowEncoder(tokenizer).encode(TEXTS)
    assert fast.lengths.tolist() == slow.lengths.tolist()
    assert fast.tokens.tolist() == slow.tokens.tolist()


@pytest.mark.parametrize(
    "texts",
    [[], [""], ["", ""], ["a", "", " b ", "c\n"], ["a\0b", "c"], ["\0"], [NEW, "a", "<|endoftext|>"], ["a" * 5000, ""]],
)
@pytest.mark.parametrize("added", [0, 6])
def test_joined_and_apart_short_texts_have_the_tokens_of_tokenizers(
    tokenizer: Tokenizer, texts: list[str], added: int
) -> None:
    content = json.loads(tokenizer.to_str())
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for number in range(added):  # special ones that gigatoken does not get leave gaps between the numbers
        token = {"id": tokenizer.vocab_size + number, "content": f"<x{number}>", "special": number % 2 == 0, **rules}
        content["added_tokens"].append(token)
    other = Tokenizer.from_str(json.dumps(content), plain_text=True)
    fast, slow = FastEncoder(other), SlowEncoder(other)
    batch = [*texts, *(f"b<x{number}> c" for number in range(added))]
    for joins in (True, False):
        fast._joins = joins
        assert fast.encode(batch).tokens.tolist() == slow.encode(batch).tokens.tolist()
        assert fast.encode(batch).lengths.tolist() == slow.encode(batch).lengths.tolist()


@pytest.mark.parametrize("drawn", ["short", "long " * 1000])
def test_texts_are_tried_joined_and_apart_whatever_the_sample_is_like(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, drawn: str
) -> None:
    for way in ("_joined", "_apart"):
        with monkeypatch.context() as patched:
            right = getattr(FastEncoder, way)

            def wrong(encoder: FastEncoder, texts: Sequence[str], right: Any = right) -> Encoded:
                encoded: Encoded = right(encoder, texts)
                return encoded if tuple(texts) == encoders.PROBE else Encoded(encoded.tokens[::-1], encoded.lengths)

            patched.setattr(FastEncoder, way, wrong)
            assert choose_engine(Engine.AUTO, tokenizer, lambda: [drawn] * 100).engine is Engine.TOKENIZERS


def test_texts_whose_tokens_change_where_others_precede_are_encoded_apart(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FastEncoder._joined
    monkeypatch.setattr(FastEncoder, "_joined", lambda encoder, texts: right(encoder, [*texts[:-2], "b", texts[-1]]))
    choice = choose_engine(Engine.AUTO, tokenizer, lambda: TEXTS)
    assert choice.engine is Engine.GIGATOKEN


def test_no_character_of_the_sweep_is_left_to_tokenizers() -> None:
    text = engine._characters()
    assert len(text) > 10000
    assert encoders._disputed(["plain", text]) == set()


def test_one_process_encodes_with_what_was_checked(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FastEncoder] = []
    make = FastEncoder.__init__

    def counted(encoder: FastEncoder, tokenizer: Tokenizer) -> None:
        made.append(encoder)
        make(encoder, tokenizer)

    monkeypatch.setattr(FastEncoder, "__init__", counted)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    rules = TokenizeOptions(tokenizer_file, engine=Engine.GIGATOKEN)
    tokenize_files([tmp_path / "texts.jsonl"], tmp_path / "out", rules, chunk_bytes=5000)
    assert len(made) == 1


def test_an_end_token_that_another_file_names_is_kept_from_texts_for_any_number_of_workers(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    """It is an ordinary word of the vocabulary, and no usual name, so that the tokenizer's file alone does not tell."""
    content = json.loads(tokenizer_file.read_text())
    content["added_tokens"][0]["content"] = "<pad>"
    content["model"]["vocab"]["<pad>"] = content["model"]["vocab"].pop("<|endoftext|>")
    number = max(content["model"]["vocab"].values()) + 1
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"].append({"id": number, "content": "[STOP]", "special": False, **rules})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[STOP]"}))
    texts = ["a [STOP] b", *TEXTS] * 3
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    written = []
    for engine_name in (Engine.TOKENIZERS, Engine.GIGATOKEN):
        for workers in (1, 2):
            output = tmp_path / f"{engine_name.value}{workers}"
            result = tokenize_files(
                [tmp_path / "texts.jsonl"],
                output,
                TokenizeOptions(tmp_path / "tokenizer.json", engine=engine_name),
                workers=workers,
                chunk_bytes=20000,
            )
            tokens = np.fromfile(f"{output}.bin", "<u2")
            assert int((tokens == number).sum()) == result.documents
            written.append(tokens.tolist())
    assert all(tokens == written[0] for tokens in written)


@pytest.mark.parametrize(("text", "disputed"), [("a\u00e9\u65e5\U0001f642", False), (NEW, True), ("\u0378", True)])
def test_texts_with_new_characters_are_left_to_tokenizers(text: str, disputed: bool) -> None:
    assert encoders._disputed(["plain", "\u00e9", text]) == ({2} if disputed else set())


def test_a_renewed_cache_changes_no_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "RENEWED_AFTER", 100)
    encoder, slow = FastEncoder(tokenizer), SlowEncoder(tokenizer)
    for _ in range(3):
        assert encoder.encode(TEXTS).tokens.tolist() == slow.encode(TEXTS).tokens.tolist()


def test_an_engine_that_gives_other_tokens_is_refused_with_the_text(tokenizer: Tokenizer) -> None:
    choice = choose_engine(Engine.AUTO, tokenizer, lambda: TEXTS, fast=Differing)
    assert choice.engine is Engine.TOKENIZERS
    assert 'gives other tokens than tokenizers for "number 7 of the texts' in str(choice)
    with pytest.raises(DataError, match=r"--engine gigatoken: gigatoken .* gives other tokens .* choose --engine auto"):
        choose_engine(Engine.GIGATOKEN, tokenizer, lambda: TEXTS, fast=Differing)


def test_added_tokens_are_tried_though_no_text_of_the_sample_spells_them(tokenizer: Tokenizer) -> None:
    choice = choose_engine(
        Engine.AUTO, tokenizer, lambda: ["a"], fast=lambda tokenizer: Differing(tokenizer, "<|endoftext|>")
    )
    assert choice.engine is Engine.TOKENIZERS


@pytest.mark.parametrize("error", [RuntimeError("no such model\nplace"), Panic("no such model")])
def test_an_engine_that_cannot_read_the_tokenizer_is_refused(tokenizer: Tokenizer, error: BaseException) -> None:
    def fails(_: Tokenizer) -> SlowEncoder:
        raise error

    choice = choose_engine(Engine.AUTO, tokenizer, lambda: TEXTS, fast=fails)
    assert choice.engine is Engine.TOKENIZERS
    assert str(choice).endswith("cannot use this tokenizer (no such model)")


def test_without_the_package_nothing_is_read_and_asking_for_it_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choice = choose_engine(Engine.AUTO, tokenizer, lambda: pytest.fail("the sample was read"))
    assert "is not installed (pip install 'scaling[fast_tokenization]')" in str(choice)
    with pytest.raises(DataError, match="is not installed"):
        choose_engine(Engine.GIGATOKEN, tokenizer, lambda: TEXTS)


def test_the_sample_is_spread_over_all_files_and_bounded(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{number} {line} " + "x" * 500}) + "\n" for line in range(4000)))
        files.append((path, path.stat().st_size))
    sample = list(sample_of(files, field="text", max_document_bytes=1000))
    assert sum(map(len, sample)) <= engine.PLACES * CHARACTERS
    lines = [text.split()[:2] for text in sample]
    for number in range(4):
        found = [int(line) for one, line in lines if one == str(number)]
        assert min(found) < 100
        assert max(found) > 3700
        assert max(np.diff(sorted(set(found)))) < 300


@pytest.mark.parametrize("end", [None, 9])
def test_the_end_stands_behind_each_text_with_tokens(end: int | None) -> None:
    encoded = Encoded(np.array([1, 2, 3]), np.array([0, 2, 0, 1]))
    ended = encoded.ended(end, np.dtype("<u2"))
    assert ended.tokens.tolist() == ([1, 2, 3] if end is None else [1, 2, 9, 3, 9])
    assert ended.lengths.tolist() == ([0, 2, 0, 1] if end is None else [0, 3, 0, 2])
    assert ended.tokens.dtype == np.dtype("<u2")
