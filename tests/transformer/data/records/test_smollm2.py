"""The tokenizer and the template of a published model."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.record import Record
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.tokenizer import Tokenizer
from tests.transformer.data.records.chat import WITH_IMAGES, source_of, talk, template_files, training_templates
from tests.transformer.hf.smollm2 import smollm2

TALKS = (talk("What is 1 + 1?", "It is 2.", "And 2 + 2?", "  4\n"), talk("Hi", "Hello", system="Be brief."))


@pytest.mark.slow
@pytest.mark.skipif(not template_files(), reason="trl is not installed; pip install --no-deps trl")
def test_tokens_and_masks_are_those_of_transformers_with_a_published_tokenizer() -> None:
    file = smollm2() / "tokenizer.json"
    known, theirs = Tokenizer.from_file(file), AutoTokenizer.from_pretrained(file.parent)
    own = ChatTemplate.beside(file)
    assert own is not None
    templates = [
        ChatTemplate(source_of(name), special=own.special)
        for name in training_templates()
        if not name.startswith(WITH_IMAGES)
    ]
    compared = 0
    for template in (own, *templates):
        encoder = RecordEncoder(
            known,
            template=template,
            format=None,
            train_on=TrainOn.ASSISTANT,
            eos_token_id=known.eos_token_id,
            vocab_size=None,
        )
        values = [{"messages": messages} for messages in TALKS]
        for messages, made in zip(TALKS, encoder.encode(values, RecordFormat.MESSAGES, folder=Path(".")), strict=True):
            if not isinstance(made, Record):
                continue
            expected = theirs.apply_chat_template(
                messages, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=template.marks
            )
            if template.marks and made.tokens.tolist() == expected["input_ids"]:
                assert made.weights.tolist() == expected["assistant_masks"]
                compared += 1
            elif not template.marks:
                assert made.tokens.tolist() == expected["input_ids"]
                chosen = [token for token, weight in zip(made.tokens.tolist(), made.weights, strict=True) if weight]
                answers = "".join(f"{one['content']}<|im_end|>\n" for one in messages if one["role"] == "assistant")
                # The line break before "  4" and its first space are one token.
                assert known.decode(chosen, skip_special_tokens=False).replace("\n\n ", "\n ") == answers
    assert compared >= 45
