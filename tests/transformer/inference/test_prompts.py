"""Prompts become tokens: special tokens, the token that begins a text once, and what fits into the context."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scaling.core import ConfigError, DataError
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.inference.prompts import prompt_tokens, require_fits

TEXTS = ("a b", "<s>a b", "<s><s>a", "a</s>b", " ", "\x00", "b<s>")


def backend_of(template: str | None, *specials: str) -> Backend:
    """Return a tokenizer of bytes whose post-processor has this template."""
    backend = Backend.from_str(train_tokenizer(["a b a b"], 260).to_str())
    backend.add_special_tokens(["<s>", "</s>", "[gMASK]"])
    if template is not None:
        ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>", "[gMASK]")]
        backend.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(template, special_tokens=ids)]
        )
    return backend


def like_gemma() -> Backend:
    """Spaces are letters, and bytes stand for what is unknown."""
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b"]
    backend = Backend(
        models.BPE(
            dict(zip(names, range(len(names)), strict=True)), [], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.add_special_tokens(["<s>", "</s>", "<unk>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return backend


def tokenizer_of(backend: Backend) -> Tokenizer:
    return Tokenizer.from_str(backend.to_str())


def tokens(prompt: Any, tokenizer: Tokenizer | None, number: int | None = None) -> list[int]:
    return prompt_tokens(prompt, tokenizer, vocab_size=300, number=number)


@pytest.mark.parametrize("make", [lambda: backend_of("<s> $A"), like_gemma], ids=["llama", "gemma"])
def test_a_tokenizer_that_begins_texts_does_so_once(make: Callable[[], Backend]) -> None:
    backend = make()
    tokenizer, peer = tokenizer_of(backend), PreTrainedTokenizerFast(tokenizer_object=backend)
    bos = tokenizer.bos_token_id
    assert bos == backend.token_to_id("<s>")
    for text in TEXTS:
        found, theirs = tokens(text, tokenizer), peer(text)["input_ids"]
        assert found == (theirs[1:] if text.startswith("<s>") else theirs)
        assert found[0] == bos
        assert tokenizer.decode(found) == text.replace("<s>", "").replace("</s>", "")
    assert tokens("", tokenizer) == tokens([], tokenizer) == [bos]
    assert tokens([5], tokenizer) == [5]


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (None, []),
        ("$A", []),
        ("$A </s>", []),
        ("<s> $A </s>", ["<s>"]),
        ("[gMASK] <s> $A", ["[gMASK]", "<s>"]),
    ],
)
def test_only_what_stands_in_front_is_taken(template: str | None, opening: Sequence[str]) -> None:
    backend = backend_of(template)
    tokenizer = tokenizer_of(backend)
    front = [backend.token_to_id(name) for name in opening]
    plain = backend.encode("a b", add_special_tokens=False).ids
    assert tokens("a b", tokenizer) == front + plain
    assert tokens("".join(opening) + "a b", tokenizer) == front + plain
    assert tokenizer.bos_token_id == (front[0] if front else None)
    if front:
        assert tokens("", tokenizer) == front
    else:
        with pytest.raises(ConfigError, match=r"prompts\[2\] is empty, and this model has no token that begins a text"):
            tokens("", tokenizer, 2)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("value", ["<s>", {"content": "<s>", "special": True}])
def test_a_file_beside_the_tokenizer_names_what_begins_an_empty_text(tmp_path: Path, file: str, value: Any) -> None:
    backend = backend_of(None)
    (tmp_path / "vocab.json").write_text(backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))
    (tmp_path / file).write_text(json.dumps({"bos_token": value}))
    tokenizer = Tokenizer.from_file(tmp_path / "vocab.json")
    assert tokens("", tokenizer) == [backend.token_to_id("<s>")]
    assert tokens("a", tokenizer) == backend.encode("a").ids  # the tokenizer itself puts nothing in front


def test_a_file_beside_the_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(backend_of(None).to_str())
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(DataError, match=r"special_tokens_map.json, which should name the token that begins a text"):
        _ = Tokenizer.from_file(tmp_path / "vocab.json").bos_token_id


def test_a_tokenizer_without_simple_letters_tells_its_beginning_too() -> None:
    backend = Backend(models.WordLevel({"hello": 0, "<s>": 1}))
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = tokenizer_of(backend)
    assert tokens("hello", tokenizer) == [1, 0]
    with pytest.raises(DataError, match="cannot encode the text"):
        tokens("other", tokenizer)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (b"\xc3\xa4\xff!".decode(errors="surrogateescape"), r"not UTF-8: it has the byte 0xff at character 1, .*'ä'"),
        ("\udc80", "it has the byte 0x80 at its beginning"),
        ("a\ud83d", r"not Unicode text: it has the lone surrogate U\+D83D at character 1"),
        (b"text", "is bytes; give a text"),
        ([1, True], "has True among its token ids"),
        ([1, 2.0], "has 2.0 among"),
        (np.array([0.5]), "0.5.* among"),
        (["a"], "has 'a' among"),
        ([300, 7], "has token 300, outside the vocabulary of 300"),
        ([-1], "has token -1, outside"),
    ],
)
def test_a_prompt_that_is_none_is_named(prompt: Any, message: str) -> None:
    tokenizer = tokenizer_of(backend_of("<s> $A"))
    for number, who in ((None, "the prompt"), (3, r"prompts\[3\]")):
        with pytest.raises(ConfigError, match=f"{who} .*{message}"):
            tokens(prompt, tokenizer, number)


def test_whole_numbers_of_any_kind_are_token_ids() -> None:
    for prompt in ((1, 2), np.array([1, 2], np.uint16), torch.tensor([1, 2]), range(1, 3)):
        found = tokens(prompt, None)
        assert found == [1, 2]
        assert all(type(token) is int for token in found)


def test_without_a_tokenizer_there_are_ids_only() -> None:
    with pytest.raises(ConfigError, match="no tokenizer beside it; give the prompt as token ids"):
        tokens("a", None)
    with pytest.raises(ConfigError, match="the prompt is empty"):
        tokens([], None)


def test_text_of_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="outside the vocabulary of 10"):
        prompt_tokens("a", tokenizer_of(backend_of(None)), vocab_size=10)


@given(
    count=st.integers(1, 12),
    new=st.integers(0, 12),
    context=st.integers(1, 12),
    placeholders=st.integers(0, 3),
    learned=st.booleans(),
    cut=st.booleans(),
    opening=st.sampled_from([(), (0,), (0, 1), (9,)]),
)
def test_what_is_returned_fits(
    count: int, new: int, context: int, placeholders: int, learned: bool, cut: bool, opening: tuple[int, ...]
) -> None:
    prompt = list(range(count))
    # The tokens that the model reads: all but the last new one.
    read = placeholders + count + max(new - 1, 0)
    fits = read <= context if learned else count + (new if cut else 0) <= context
    room = (context + 1 - placeholders if learned and new else context - placeholders * learned) - new
    kept = len(opening) if tuple(prompt[: len(opening)]) == opening else 0
    fit = partial(require_fits, prompt, new, context, learned=learned, placeholders=placeholders, opening=opening)
    if fits:
        assert fit(truncate_left=cut) == prompt
    elif cut and room > kept:
        found = fit(truncate_left=True)
        assert len(found) == room
        assert found[:kept] == prompt[:kept]
        assert found[kept:] == prompt[count - room + kept :]
    else:
        with pytest.raises(ConfigError, match="nothing of the prompt would be left" if cut else f"has {count} tokens"):
            fit(truncate_left=cut)


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers() -> None:
    assert require_fits([1, 2], 9, None, learned=False) == [1, 2]
    assert require_fits([1] * 2048, 500, 2048, learned=False) == [1] * 2048
    with pytest.raises(ConfigError, match=r"prompts\[1\] has 2100 tokens, .* trained on 2048; .*--truncate-left"):
        require_fits([1] * 2100, 5, 2048, learned=False, number=1)
    with pytest.raises(ConfigError, match=r"9 tokens and 2 placeholders .* knows 16 positions .*at most 6, or"):
        require_fits([1] * 9, 7, 16, learned=True, placeholders=2)
    with pytest.raises(ConfigError, match=r"17 tokens and max_tokens is 0, .* knows 16 positions .*; shorten it, or"):
        require_fits([1] * 17, 0, 16, learned=True)
    with pytest.raises(ConfigError, match=r"nothing of the prompt would be left; set max_tokens to at most 14"):
        require_fits([1] * 17, 20, 16, learned=False, opening=[1], truncate_left=True)
