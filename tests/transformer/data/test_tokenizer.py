"""Text to token ids and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.core.errors import DataError, StorageError
from scaling.transformer.data.end_token import END_OF_TEXT
from scaling.transformer.data.tokenizer import Tokenizer, tokenizer_digest, train_tokenizer

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


@pytest.mark.parametrize(
    ("known", "expected"),
    [(["</s>"], "</s>"), (["</s>", "<|end_of_text|>"], "<|end_of_text|>"), (["<pad>", "<eos>"], "<eos>")],
)
def test_the_end_token_is_the_first_of_the_usual_names(tokenizer: Tokenizer, known: list[str], expected: str) -> None:
    loaded = Tokenizer.from_str(with_special(tokenizer, *known))
    assert loaded.eos_token_id == loaded.token_id(expected)


def test_a_tokenizer_without_an_end_token_says_what_to_set(tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.to_str().replace(END_OF_TEXT, "<|unusual|>"))
    with pytest.raises(DataError, match=r"no end-of-document token .* data\.eod_token_id"):
        _ = Tokenizer.from_str(json.dumps(content)).eos_token_id


def with_special(tokenizer: Tokenizer, *names: str, special: bool = True) -> str:
    """Return a tokenizer's text, its own end token replaced by tokens of other names."""
    content = json.loads(tokenizer.to_str())
    template = content["added_tokens"].pop()
    content["model"]["vocab"] = {
        token: number for token, number in content["model"]["vocab"].items() if token != END_OF_TEXT
    }
    for number, name in enumerate(names):
        content["added_tokens"].append({**template, "id": 300 + number, "content": name, "special": special})
    return json.dumps(content)


def test_the_end_token_can_be_named_and_an_unknown_one_gets_near_names(tokenizer: Tokenizer) -> None:
    serialized = with_special(tokenizer, "<|im_start|>", "<|im_end|>", "<done>")

    def end(name: str) -> str | None:
        return Tokenizer(serialized, end_token=name).eos_token

    assert end("<done>") == "<done>"
    with pytest.raises(DataError, match=r"'<\|im_ends\|>', named by --eod-token, is no token .* mean '<\|im_end\|>'"):
        end("<|im_ends|>")
    with pytest.raises(
        DataError, match=r"'the'.* is an ordinary token .* special tokens are '<\|im_start\|>', '<\|im_e"
    ):
        end("the")


def test_special_tokens_are_named_before_others_that_were_added(tokenizer: Tokenizer) -> None:
    content = json.loads(with_special(tokenizer, "<plain>", "<end>", special=False))
    content["added_tokens"][-1]["special"] = True
    with pytest.raises(DataError, match="special tokens are '<end>', '<plain>'"):
        _ = Tokenizer(json.dumps(content), end_token="the").eos_token


def test_files_beside_a_tokenizer_tell_its_end_token_in_a_fixed_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(with_special(tokenizer, "<|im_end|>", "<a>", "<b>", "<c>"))
    c = Tokenizer.from_file(path).token_id("<c>")
    expected = "<|im_end|>"  # a usual name
    assert Tokenizer.from_file(path).eos_token == expected
    for name, content in (
        ("generation_config.json", {"eos_token_id": [c, 0]}),
        ("special_tokens_map.json", {"eos_token": {"content": "<b>", "lstrip": False}}),
        ("tokenizer_config.json", {"eos_token": "<a>"}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    for expected, key in (("<a>", "tokenizer_config"), ("<b>", "special_tokens_map"), ("<c>", "generation_config")):
        loaded = Tokenizer.from_file(path)
        assert loaded.eos_token == expected
        assert loaded.eos_token_id == loaded.token_id(expected)
        assert Tokenizer.from_file(path, end_token="<|im_end|>").eos_token == "<|im_end|>"
        (tmp_path / f"{key}.json").write_text('{"eos_token": null, "model_max_length": 5}')
    assert Tokenizer.from_file(path).eos_token == "<|im_end|>"
    # They speak of the tokenizer of this name, not of another one that lies there too.
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    (tmp_path / "mine.json").write_text(path.read_text())
    assert Tokenizer.from_file(tmp_path / "mine.json").eos_token == "<|im_end|>"
    with pytest.raises(DataError, match=r"'<eos>', named by eos_token in .*tokenizer_config.json, is no token"):
        _ = Tokenizer.from_file(path).eos_token
    for damage in ("{", "[" * 100_000):
        (tmp_path / "tokenizer_config.json").write_text(damage)
        assert Tokenizer.from_file(path).vocab_size > 300  # nobody has asked yet
        with pytest.raises(DataError, match=r"tokenizer_config\.json, which should name .* --eod-token"):
            _ = Tokenizer.from_file(path).eos_token


def test_an_end_token_that_is_not_special_is_text_in_documents(tokenizer: Tokenizer) -> None:
    serialized = with_special(tokenizer, "<eos>", "  ", special=False)
    plain = Tokenizer(serialized, plain_text=True)
    end = plain.eos_token_id
    for ids in (plain.encode("a<eos>b  c"), *plain.encode_batch(["a<eos>b  c"])):
        assert end not in ids
        assert plain.token_id("  ") in ids  # an added token that is but text
        assert plain.decode(ids, skip_special_tokens=False) == "a<eos>b  c"
    assert end in Tokenizer(serialized).encode("a<eos>b")


UNIGRAM = [["<unk>", 0.0], ["</s>", 0.0], ["▁", -3.0], *([letter, -5.0] for letter in "<>/sab")]


def test_a_model_with_the_end_token_among_its_pieces_spells_it_in_letters() -> None:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    content = {
        "added_tokens": [{"id": number, "content": UNIGRAM[number][0], **special} for number in (0, 1)],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": UNIGRAM, "byte_fallback": False},
    }
    plain = Tokenizer(json.dumps(content), plain_text=True)
    (ids,) = plain.encode_batch(["a </s>b é"])
    assert plain.eos_token_id == 1
    assert 1 not in ids
    assert 0 in ids  # what is unknown stays so
    assert plain.decode(ids, skip_special_tokens=False) == "a </s>b <unk>"


def test_an_end_token_that_cannot_be_spelled_otherwise_is_refused() -> None:
    content = {"model": {"type": "WordLevel", "unk_token": "e", "vocab": {"e": 0, "a": 1}}, "added_tokens": []}
    plain = Tokenizer(json.dumps(content), plain_text=True, end_token="a")
    with pytest.raises(DataError, match="a document spells 'a', which ends documents"):
        plain.encode("a")


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"model": {"type": "BPE"}}', b"\xff\xfe\x00"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer file .*tokenizer\.json is not"):
        Tokenizer.from_file(path)


def test_a_folder_is_answered_with_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; there is no tokenizer\.json in it; name the file"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(DataError, match=rf"is a folder; name the file in it: {tmp_path / 'tokenizer.json'}"):
        Tokenizer.from_file(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer file .*absent\.json cannot be read: No such file"):
        Tokenizer.from_file(tmp_path / "absent.json")
