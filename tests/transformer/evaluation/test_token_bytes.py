"""The bytes of tokens add up to those of the text that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.evaluation.token_bytes import token_bytes

LEARNT = ["the cät 🙂 sat on the mat. the mät", "low lower lowest 日本語 日本 été"]
TEXTS = st.text(st.sampled_from("the cätlowmé🙂日本 \n<0xE9>▁#."), max_size=40)


def byte_level() -> Tokenizer:
    backend = Backend.from_str(train_tokenizer(LEARNT, 290).to_str())
    backend.add_tokens(["é\u0301 é", AddedToken("日", normalized=False)])
    return Tokenizer.from_str(backend.to_str())


def byte_fallback() -> Tokenizer:
    """As SentencePiece writes it: spaces are letters, and unknown letters bytes."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁thecatlow", "th", "▁th", "▁the", "日"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e")]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>"])
    return Tokenizer.from_str(backend.to_str())


def metaspace() -> Tokenizer:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(LEARNT, trainer)
    return Tokenizer.from_str(backend.to_str())


def word_piece() -> Tokenizer:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        LEARNT, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    )
    return Tokenizer.from_str(backend.to_str())


def words() -> Tokenizer:
    backend = Backend(models.WordLevel({"[UNK]": 0, "the": 1, "cät": 2, "日本": 5}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer.from_str(backend.to_str())


def measure_cut_characters(rank: int, world_size: int) -> None:
    """Measure a text of which no token is a character."""
    tokenizer = train_tokenizer(["a"], 257)
    assert int(token_bytes(tokenizer)[tokenizer.encode("日🙂")].sum()) == 7


def test_tokens_within_characters_have_their_part_of_them() -> None:
    measure_cut_characters(0, 1)


@settings(max_examples=60)
@given(TEXTS)
def test_bytes_of_byte_level_tokens_are_those_of_the_text(text: str) -> None:
    tokenizer, sizes = CACHED[byte_level]
    assert int(sizes[tokenizer.encode(text)].sum()) == len(text.encode())


@pytest.mark.parametrize("make", [byte_fallback, metaspace, word_piece, words])
@settings(max_examples=40)
@given(text=TEXTS)
def test_bytes_of_tokens_behind_the_first_are_those_of_the_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer, sizes = CACHED[make]
    tokens = tokenizer.encode(f"the {text}")
    decoded = [len(tokenizer.decode(part).encode()) for part in (tokens, tokens[:1])]
    assert int(sizes[tokens[1:]].sum()) == decoded[0] - decoded[1]


CACHED = {
    make: (made := make(), token_bytes(made)) for make in (byte_level, byte_fallback, metaspace, word_piece, words)
}


def test_special_tokens_and_gaps_have_no_bytes() -> None:
    tokenizer, sizes = CACHED[byte_level]
    assert sizes[tokenizer.eos_token_id] == 0
    assert CACHED[words][1].tolist() == [6, 4, 5, 0, 0, 7]  # [UNK] is no added token: it is shown in texts
