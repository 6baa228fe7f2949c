"""Special tokens are those that the template writes; what a text spells stays text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.record import Record
from scaling.transformer.data.tokenizer import Tokenizer
from tests.transformer.data.records.chat import chat_template, encoder, talk, tokenizer

FRAME = ("<|im_start|>", "<|im_end|>")
MARKED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}" + (
    "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
PARTS = st.sampled_from(
    [*FRAME, "<|im_", "end|>", "<", "|>", "<|endoftext|>", "assistant\n", "\ue000", " a", "é", "\n"]
)
TEXTS = st.lists(PARTS, min_size=1, max_size=5).map("".join)


def record(messages: list[dict[str, Any]], by: RecordEncoder) -> Record:
    (made,) = by.encode([{"messages": messages}], RecordFormat.MESSAGES, folder=Path("."))
    assert isinstance(made, Record), made
    return made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=2), st.booleans())
def test_texts_never_make_special_tokens_and_come_back_as_they_were(turns: list[tuple[str, str]], marks: bool) -> None:
    contents = [text for turn in turns for text in turn]
    by = encoder(chat_template(MARKED) if marks else chat_template())
    made = record(talk(*contents), by)
    known = tokenizer()
    ids = made.tokens.tolist()
    rendered, _ = chat_template().render(talk(*contents))
    assert known.decode(ids, skip_special_tokens=False) == rendered
    for name in FRAME:
        assert ids.count(known.token_id(name)) == len(contents)
    assert known.token_id("<|endoftext|>") not in ids
    answers = "".join(f"{answer}<|im_end|>\n" for _, answer in turns)
    chosen = [token for token, weight in zip(ids, made.weights, strict=True) if weight]
    assert known.decode(chosen, skip_special_tokens=False) == answers


def test_tokens_are_those_of_the_whole_text_where_nothing_is_spelled() -> None:
    messages = talk("What is 1 < 2?", "Yes, it is >.", "x <", "y")
    rendered, _ = chat_template().render(messages)
    assert record(messages, encoder(chat_template())).tokens.tolist() == tokenizer().encode(rendered)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("scheme", ["always", "first", "never", "prepend"])
def test_every_kind_of_tokenizer_keeps_what_is_spelled_as_text(scheme: str, special: bool) -> None:
    """Tokens that frame turns may never have been declared special, be in the model's vocabulary, or have holes in the
    ids before them; spaces that a tokenizer puts before texts stay where they are."""
    letters = [*"</|_>aeimnprstuodyx0\n", "▁", "<|im_end|>", "</s>"]
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="x"))
    if scheme == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    content = json.loads(backend.to_str())
    names = {"<|im_start|>": 90, "<|im_end|>": letters.index("<|im_end|>"), "</s>": letters.index("</s>"), "<t>": 95}
    content["added_tokens"] = [
        {"id": number, "content": name, "special": special and name != "<t>", "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
        for name, number in names.items()
    ]
    known = Tokenizer.from_str(json.dumps(content))
    ids = [known.token_id(name) for name in names]  # those that are not in the model's vocabulary get the next ones
    end = ids[2]
    assert end is not None
    by = RecordEncoder(
        known, template=chat_template(), format=None, train_on=TrainOn.ASSISTANT, eos_token_id=end, vocab_size=None
    )
    plain = record(talk("in a <t> so", "and"), by).tokens.tolist()
    assert plain == known.encode(chat_template().render(talk("in a <t> so", "and"))[0])
    spelled = record(talk("in<|im_end|> a <t> so</s>", "and"), by).tokens.tolist()
    assert [[tokens.count(number) for number in ids] for tokens in (plain, spelled)] == [[2, 2, 0, 1]] * 2
    expected = named(known, plain).replace("in▁a", "in<|im_end|>▁a").replace("so<|im_end|>", "so</s><|im_end|>")
    assert named(known, spelled) == expected


def named(known: Tokenizer, ids: list[int]) -> str:
    return "".join(known.token_name(number) or "" for number in ids)
