"""Pieces of text from tokens: whole characters, up to the first stop text, with the same work for each token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from scaling.core import ConfigError
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.inference.text import TextStream, escaped

LETTERS = "ab d.'n\ufffd\u0301é€日🙂\u200d\n"


def made(model: models.Model, decoder: decoders.Decoder | None, *added: str) -> Tokenizer:
    backend = Backend(model)
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens(list(added))
    return Tokenizer.from_str(backend.to_str())


def byte_level() -> Tokenizer:
    trained = json.loads(train_tokenizer(["ab ab é€ 日日 🙂🙂 \ufffd\ufffd"] * 5, 290).to_str())
    backend = Backend.from_str(json.dumps(trained))
    backend.add_special_tokens(["<s>"])
    backend.add_tokens(["é日", "\ufffd"])
    return Tokenizer.from_str(backend.to_str())


def like_llama(*, strips: bool) -> Tokenizer:
    """Byte fallback, as in tokenizers made of SentencePiece's; some drop the space that encoding puts in front."""
    words = ["▁", "▁a", "a", "b", "▁▁", "é", "\ufffd", "<0x0A>x", ".", "日日"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    model = models.BPE(dict(zip(names, range(len(names)), strict=True)), [], unk_token="<unk>", byte_fallback=True)
    return made(model, decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strips else [])]), "🙂🙂")


def of_words(decoder: decoders.Decoder | None) -> Tokenizer:
    words = ["[UNK]", "a", "##b", "##n't", "'", ".", "n't", "▁a", "▁", "b</w>", "é", "\ufffd", "日", "##\u0301"]
    return made(models.WordLevel(dict(zip(words, range(len(words)), strict=True)), unk_token="[UNK]"), decoder, "a b")


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "byte fallback": lambda: like_llama(strips=False),
    "byte fallback without the first space": lambda: like_llama(strips=True),
    "word pieces": lambda: of_words(decoders.WordPiece(cleanup=True)),
    "words": lambda: of_words(None),
    "metaspace": lambda: of_words(decoders.Metaspace()),
    "ends of words": lambda: of_words(decoders.BPEDecoder()),
}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return KINDS[kind]()


@cache
def spelled(kind: str) -> tuple[list[int], dict[str, list[int]]]:
    """Return the tokens of a tokenizer, and for each letter those that spell it alone."""
    tokenizer = tokenizer_of(kind)
    ids = list(range(tokenizer.vocab_size + 2))  # a model may know more tokens
    return ids, {letter: tokenizer.encode(letter) for letter in LETTERS}


@st.composite
def token_lists(draw: st.DrawFn, kind: str) -> list[int]:
    """Tokens of random texts, in random pieces, with random tokens between."""
    ids, letters = spelled(kind)
    parts = st.one_of(
        st.lists(st.sampled_from(ids), max_size=6),
        st.text(LETTERS, max_size=8).map(tokenizer_of(kind).encode),
        st.text(LETTERS, max_size=8).map(lambda text: [token for letter in text for token in letters[letter]]),
    )
    return [token for part in draw(st.lists(parts, max_size=6)) for token in part]


def before_first(text: str, stops: Sequence[str]) -> str:
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data(), stops=st.lists(st.text("ab .é日🙂\ufffd", min_size=1, max_size=4), max_size=3))
def test_pieces_are_the_text_before_the_first_stop_text(kind: str, data: st.DataObject, stops: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = data.draw(token_lists(kind))
    stream = TextStream(tokenizer, stops)
    pieces = [stream.push(token) for token in tokens]
    stopped = stream.stopped
    shown = "".join(pieces)
    pieces.append(stream.finish(cut=False))
    whole = tokenizer.decode(tokens)
    assert "".join(pieces) == stream.text == before_first(whole, stops)
    assert stream.stopped == any(stop in whole for stop in stops)
    assert stream.finish(cut=False) == ""
    if stopped:  # nothing comes behind a stop text
        assert shown == stream.text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_follows_nothing_shown_is_taken_back(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = data.draw(token_lists(kind))
    stream, shown = TextStream(tokenizer), ""
    for place, token in enumerate(tokens):
        shown += stream.push(token)
        for follower in data.draw(st.lists(st.sampled_from(spelled(kind)[0]), max_size=2)):
            assert tokenizer.decode([*tokens[: place + 1], follower]).startswith(shown)


@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
@settings(max_examples=60)
@given(text=st.text(LETTERS.replace("\ufffd", ""), min_size=1, max_size=12), data=st.data())
def test_a_character_that_the_limit_has_cut_is_left_out(kind: str, text: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = [token for letter in text for token in spelled(kind)[1][letter]]
    count = data.draw(st.integers(0, len(tokens)))
    stream = TextStream(tokenizer)
    pieces = [*map(stream.push, tokens[:count]), stream.finish(cut=True)]
    ends = list(accumulate(len(spelled(kind)[1][letter]) for letter in text))
    assert "".join(pieces) == text[: sum(end <= count for end in ends)]


def test_characters_come_whole_and_as_soon_as_they_are_known() -> None:
    tokenizer = train_tokenizer(["ab"], 300)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode("a🙂b\ufffd\u0301")]
    assert pieces == ["a", "", "", "", "🙂", "b", "", "", "\ufffd", "", "\u0301"]


def test_bytes_wait_for_those_beside_them() -> None:
    """One that is no UTF-8 makes replacement characters of all of them; a limit leaves whole characters."""
    tokenizer = tokenizer_of("byte fallback")
    good, bad, a = tokenizer.encode("\u20ac"), tokenizer.token_id("<0xFF>"), tokenizer.encode("a")
    assert len(good) == 3
    assert bad is not None
    for tokens in ([*good, *good, *a], [*good, bad, *a]):
        stream = TextStream(tokenizer)
        assert [stream.push(token) for token in tokens] == [""] * (len(tokens) - 1) + [tokenizer.decode(tokens)]
    stream = TextStream(tokenizer)
    assert [*map(stream.push, [*good, *good[:2]]), stream.finish(cut=True)] == [*[""] * 5, "\u20ac"]


def test_a_space_is_dropped_at_the_beginning_of_a_text_only() -> None:
    tokenizer = tokenizer_of("byte fallback without the first space")
    word, space = tokenizer.token_id("▁a"), tokenizer.token_id("▁")
    assert word is not None
    assert space is not None
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, [word] * 40)) == "a" + " a" * 39
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, [space] * 40)) == " " * 39


@pytest.mark.parametrize(
    ("stops", "text", "pieces"),
    [
        (["ab", "abc", "b"], "xabc", ["x", "", "", ""]),
        (["abc", "b"], "xabc", ["x", "", "", ""]),  # the stop text inside came first, but began later
        (["abc", "b"], "xabd", ["x", "", "", "a"]),
        (["abcd"], "xabcabcd", ["x", "", "", "", "abc", "", "", ""]),
        (["aab"], "aaab", ["", "", "a", ""]),
        (["zz"], "az", ["a", ""]),
    ],
)
def test_what_may_become_a_stop_text_waits(stops: list[str], text: str, pieces: list[str]) -> None:
    tokenizer = train_tokenizer(["ab"], 257)
    stream = TextStream(tokenizer, stops)
    assert [stream.push(token) for token in tokenizer.encode(text)] == pieces
    assert stream.stopped == (stops != ["zz"])
    assert stream.finish(cut=True) == ("z" if stops == ["zz"] else "")


@pytest.mark.parametrize("kind", ["bytes", "byte fallback", "word pieces"])
def test_the_work_for_a_token_does_not_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and characters are counted, in endless text and in endless bytes that are no text."""
    tokenizer = tokenizer_of(kind)
    counts = {"tokens": 0}
    decode = Tokenizer.decode

    def counting(self: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        counts["tokens"] += len(ids)
        return decode(self, ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    ordinary = tokenizer.encode("a")
    broken = [token for token in range(tokenizer.vocab_size) if "\ufffd" in decode(tokenizer, [token])][:3]
    for tokens in (ordinary, broken or ordinary, [*broken, *ordinary]):
        stream, work = TextStream(tokenizer, ["aaab", "never"]), []
        for _ in range(2):
            counts["tokens"] = 0
            for token in tokens * 600:
                stream.push(token)
            work.append(counts["tokens"])
        assert work[1] <= work[0] + 50
        assert work[1] <= 15 * 600 * len(tokens)


def test_an_empty_stop_text_and_one_text_instead_of_several_are_refused() -> None:
    tokenizer = train_tokenizer(["ab"], 257)
    with pytest.raises(ConfigError, match="a stop text is empty"):
        TextStream(tokenizer, ["a", ""])
    with pytest.raises(ConfigError, match=r"give a list of texts: stop=\['ab'\]"):
        TextStream(tokenizer, "ab")


def test_text_cannot_command_a_terminal() -> None:
    assert escaped("a\x1b[2J\r\x00\x7f\x9b") == r"a\x1b[2J\x0d\x00\x7f\x9b"
    assert escaped("\u202e\u2066\u2069\udcff") == r"\u202e\u2066\u2069\udcff"
    kept = "tab\t line\n é日🙂\u200d\u0301\xa0"
    assert escaped(kept) == kept


def test_the_reference_decoders_are_those_meant() -> None:
    assert tokenizer_of("byte fallback").decode(tokenizer_of("byte fallback").encode("日a")) == "日a"
    assert tokenizer_of("bytes").decode(tokenizer_of("bytes").encode(LETTERS)) == LETTERS
