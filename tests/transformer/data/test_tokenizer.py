"""Text to token ids and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.core.errors import DataError, StorageError
from scaling.transformer.data.tokenizer import END_OF_TEXT, Tokenizer, tokenizer_digest, train_tokenizer

TEXTS = ["def add(left, right):\n    return left + right\n", "Grüße aus Köln 🎉\n", "the the the then them\n" * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("text", [*TEXTS, "", " ", "\t\r\n", "日本語 \u200d\u0301", "\x00\x7f"])
def test_any_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_is_deterministic_and_learns_frequent_words(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(iter(TEXTS), 300).sha256 == tokenizer.sha256
    assert len(tokenizer.encode("the then them")) < len("the then them") / 2
    assert tokenizer.vocab_size == len(tokenizer) == 300


def test_short_texts_give_a_smaller_vocabulary_than_asked_for() -> None:
    assert 257 <= train_tokenizer(["ab"], 1000).vocab_size < 300


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="a vocabulary of 256 is too small"):
        train_tokenizer(TEXTS, 256)


def test_saving_and_loading_keep_the_digest(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.from_file(path)
    assert loaded.sha256 == tokenizer.sha256 == Tokenizer.from_str(tokenizer.to_str()).sha256
    assert tokenizer_digest(path) == loaded.sha256
    assert loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
    assert loaded.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_saving_where_one_cannot_is_a_storage_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="writing the tokenizer file"):
        tokenizer.save(tmp_path / "file" / "tokenizer.json")


def test_special_tokens_act_in_prompts_but_never_in_documents(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_token_id
    assert end == tokenizer.padding_token_id == tokenizer.token_id(END_OF_TEXT)
    assert tokenizer.encode(f"a{END_OF_TEXT}") == [*tokenizer.encode("a"), end]
    plain = Tokenizer.from_str(tokenizer.to_str(), plain_text=True)
    assert end not in plain.encode(f"a{END_OF_TEXT}")
    assert plain.decode(plain.encode(f"a{END_OF_TEXT}")) == f"a{END_OF_TEXT}"
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special_tokens=False) == END_OF_TEXT


def test_the_vocabulary_size_covers_added_tokens(tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.to_str())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "<|user|>"})
    extended = Tokenizer.from_str(json.dumps(content))
    (user,) = extended.encode("<|user|>")
    assert user >= 300
    assert extended.vocab_size == user + 1


@pytest.mark.parametrize(("known", "expected"), [(["</s>"], "</s>"), (["</s>", "<|end_of_text|>"], "<|end_of_text|>")])
def test_the_end_token_is_the_first_of_the_usual_names(tokenizer: Tokenizer, known: list[str], expected: str) -> None:
    content = json.loads(tokenizer.to_str())
    template = content["added_tokens"][0]
    content["added_tokens"] = []
    content["model"]["vocab"] = {
        token: number for token, number in content["model"]["vocab"].items() if token != END_OF_TEXT
    }
    for number, token in enumerate(known):
        content["added_tokens"].append({**template, "id": 300 + number, "content": token})
    loaded = Tokenizer.from_str(json.dumps(content))
    assert loaded.eos_token_id == loaded.token_id(expected)


def test_a_tokenizer_without_an_end_token_says_what_to_set(tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.to_str().replace(END_OF_TEXT, "<|unusual|>"))
    with pytest.raises(DataError, match=r"no end-of-document token .* data\.eod_token_id"):
        _ = Tokenizer.from_str(json.dumps(content)).eos_token_id


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"model": {"type": "BPE"}}', b"\xff\xfe\x00"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer file .*tokenizer\.json is not"):
        Tokenizer.from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer file .*absent\.json cannot be read: No such file"):
        Tokenizer.from_file(tmp_path / "absent.json")
