"""Conversations become the text and the tokens that transformers makes of them, and fit the model's context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from scaling.core import ConfigError, DataError
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.chat import ChatText, Conversation, chat_text
from tests.transformer.data.records.chat import (
    CHATML,
    SPECIAL,
    WITH_IMAGES,
    chat_template,
    source_of,
    talk,
    template_files,
    tokenizer,
)

KINDS = ("qwen2_5", "qwen3", "llama3", "llama3_1", "gemma", "gemma3", "phi3", "phi3_5", "deepseekv3", "cohere")
TALKS = [
    talk("Hi <|"),
    talk("Hi!", "Hello.", "What is 1 < 2?"),
    talk("a\n", "<think>\nwell\n</think>\n\nb", " c ", "", "d"),
    talk("What is this?", system="Be brief."),
    talk("a", "b", "c", system="Be\nbrief."),
    talk("a", "b", "c")[1:],
]
LEADING_ZERO_WIDTH: Any = None


def theirs(source: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer().to_str()), **SPECIAL)
    made.chat_template = source
    return made


@pytest.mark.parametrize("name", sorted(template_files()) or [pytest.param("", marks=pytest.mark.skip("no trl"))])
def test_text_and_tokens_are_those_of_transformers(name: str) -> None:
    source = source_of(name)
    other, text = theirs(source), ChatText(tokenizer(), chat_template(source))
    for messages in TALKS:
        if name.startswith(WITH_IMAGES):
            continue
        try:
            expected = other.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # of any kind, as templates raise
            with pytest.raises(ConfigError, match=r"^the chat template (refuses|fails on) it") as ours:
                text.prompt(messages)
            assert str(error) in str(ours.value)
            continue
        made = text.prompt(messages)
        assert made.text == expected
        ids = other.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(made.tokens) == ids
