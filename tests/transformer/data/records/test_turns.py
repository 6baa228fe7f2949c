"""What counts in a conversation is what the assistant writes, with the end of each of its turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.encode import RecordEncoder
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.record import Record
from tests.transformer.data.records.chat import (
    CHATML,
    SPECIAL,
    WITH_IMAGES,
    chat_template,
    encoder,
    source_of,
    talk,
    template_files,
    tokenizer,
    training_templates,
    without_tags,
)

CALL = [
    *talk("What is it?"),
    {
        "role": "assistant",
        "content": "I ask",
        "reasoning_content": "Who knows",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    },
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "It is 42"},
]
TALKS = (
    talk("hi there", "hello <x>"),
    talk("a", "b one", "c", "d two\n\nok"),
    talk("a", "b one", "c", "d", system="be nice"),
    talk("a", "  b one \n", "c", "<think>\nhm\n</think>\n\nd two"),
    CALL,
)


def encode(encoder: RecordEncoder, messages: list[dict[str, Any]], **more: Any) -> Record | Refusal:
    (made,) = encoder.encode([{"messages": messages, **more}], RecordFormat.MESSAGES, folder=Path("."))
    return made


def counted(messages: list[dict[str, Any]], source: str = CHATML, train_on: TrainOn = TrainOn.ASSISTANT) -> str:
    """Return the text of the tokens that count, refusals as such."""
    made = encode(encoder(chat_template(source), train_on=train_on), messages)
    if isinstance(made, Refusal):
        return f"refused: {made}"
    chosen = [token for token, weight in zip(made.tokens.tolist(), made.weights, strict=True) if weight]
    return tokenizer().decode(chosen, skip_special_tokens=False)


def by_transformers(messages: list[dict[str, Any]], source: str) -> tuple[list[int], list[int]] | None:
    """Return tokens and mask; None where the template does not take the messages."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer().to_str()), **SPECIAL)
    try:
        made = theirs.apply_chat_template(
            messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception:  # whatever a template raises
        return None
    return made["input_ids"], made["assistant_masks"]


@pytest.mark.skipif(not template_files(), reason="trl is not installed; pip install --no-deps trl")
@pytest.mark.parametrize("name", training_templates() or [""])
def test_masks_are_those_of_transformers_and_stay_the_same_without_marks(name: str) -> None:
    """A twin without marks may lack what the prompt for an answer holds already, or be refused; nothing else."""
    source = source_of(name)
    marked, compared = encoder(chat_template(source)), 0
    twins = [encoder(chat_template(without_tags(source)))]
    if name.removesuffix("_training") in template_files():
        twins.append(encoder(chat_template(source_of(name.removesuffix("_training")))))
    for messages in TALKS:
        given = messages
        if name.startswith(WITH_IMAGES):
            given = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        theirs = by_transformers(given, source)
        made = encode(marked, given)
        if theirs is None:
            assert isinstance(made, Refusal)
            continue
        assert isinstance(made, Record), made
        assert (made.tokens.tolist(), made.weights.tolist()) == theirs
        compared += 1
        for twin in twins:
            again = encode(twin, given)
            if isinstance(again, Refusal) or again.tokens.tolist() != theirs[0]:
                continue
            assert without_prompts(theirs[1], again, source, given) == again.weights.tolist()
    assert compared


def without_prompts(mask: list[int], record: Record, source: str, messages: list[dict[str, Any]]) -> list[int]:
    """Take out of a mask what a template marks although the prompt for an answer holds it: ends of the prompt."""
    words = [tokenizer().decode([token], skip_special_tokens=False) for token in record.tokens.tolist()]
    asked = messages[: [message["role"] for message in messages].index("assistant")]
    prompt, _ = chat_template(source).render(asked, prompt=True)
    kept = list(mask)
    for place, weight in enumerate(record.weights.tolist()):
        if mask[place] and not weight:
            stop = place
            while mask[stop] and not record.weights[stop]:
                stop += 1
            start = place
            while start and mask[start - 1] and not record.weights[start - 1]:
                start -= 1
            assert prompt.endswith("".join(words[start:stop])), words[start:stop]
            kept[place] = 0
    return kept


def test_a_turn_counts_with_its_end_and_nothing_else_does() -> None:
    assert counted(talk("hi", "hello", "more", "yes", system="be")) == "hello<|im_end|>\nyes<|im_end|>\n"
    assert counted(talk("hi", "hello", "unanswered")) == "hello<|im_end|>\n"
    assert counted(talk("only asked")) == ""


def test_what_is_trained_on_can_be_chosen() -> None:
    messages = talk("hi", "hello", "more", "yes")
    assert counted(messages, train_on=TrainOn.LAST) == "yes<|im_end|>\n"
    whole, _ = chat_template().render(messages)
    assert "<|im_start|>" + counted(messages, train_on=TrainOn.ALL) == whole


@pytest.mark.parametrize("marks", [False, True])
def test_messages_have_weights_of_their_own(marks: bool) -> None:
    source = CHATML
    if marks:
        source = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
            "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    messages = talk("hi", "hello", "more", "yes", "still", "half")
    messages[1]["weight"], messages[3]["weight"], messages[5]["weight"] = 0, 1, 0.5
    made = encode(encoder(chat_template(source)), messages)
    assert isinstance(made, Record)
    halves = tokenizer().encode("half<|im_end|>\n")
    assert counted(messages, source) == "yes<|im_end|>\nhalf<|im_end|>\n"
    assert made.weights[-len(halves) :].tolist() == [0.5] * len(halves)
    assert 0 < made.weights.sum() == len(tokenizer().encode("yes<|im_end|>\n")) + len(halves) / 2
    assert "hello" not in counted(messages, source, TrainOn.ALL)
    assert "hi<|im_end|>" in counted(messages, source, TrainOn.ALL)


def test_a_prompt_of_messages_does_not_count() -> None:
    value = {"prompt": talk("a", "first", "b"), "completion": [{"role": "assistant", "content": "second"}]}
    (made,) = encoder(chat_template()).encode([value], RecordFormat.PROMPT_COMPLETION, folder=Path("."))
    assert isinstance(made, Record)
    assert made.weights.sum() == len(tokenizer().encode("second<|im_end|>\n"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (CHATML.replace("message['content']", "message['content'] | upper"), "leaves out what message"),
        (CHATML.replace("message['content']", "message['content'] ~ message['content']"), "each text .* once"),
        (CHATML.replace("message['content']", "message['content'] | replace('l', 'll')"), "leaves out|changes what"),
        (CHATML.replace("<|im_end|>\n", ""), "writes nothing that ends the turn"),
        (CHATML.replace("assistant\n{% endif", "assistant: {% endif"), "does not lead to message 2"),
        (CHATML.replace("{% if add", "{{ raise_exception('no') }}{% if add"), "refuses it: no"),
        (CHATML.replace("{% if add", "{{ 1 + 'a' }}{% if add"), "fails on it .TypeError"),
    ],
)
def test_a_template_that_hides_the_turns_is_refused(source: str, reason: str) -> None:
    made = encode(encoder(chat_template(source)), talk("hi", "hello"))
    assert isinstance(made, Refusal)
    with pytest.raises(Refusal, match=reason):
        raise made


def test_a_text_that_looks_like_the_word_in_its_place_changes_nothing() -> None:
    assert counted(talk("reply0n0x reply1n0x", "reply0n1x")) == "reply0n1x<|im_end|>\n"


def test_a_trimmed_text_is_found_again() -> None:
    source = CHATML.replace("message['content']", "message['content'] | trim")
    assert counted(talk(" hi ", "\n hello ", "b", "c"), source) == "hello<|im_end|>\nc<|im_end|>\n"


def test_an_end_that_only_the_whole_conversation_has_belongs_to_the_last_turn() -> None:
    source = CHATML.replace("{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add")
    assert counted(talk("a", "b", "c", "d"), source) == "b<|im_end|>\nd<|im_end|>\n<|endoftext|>"


def test_tools_that_a_template_leaves_out_are_refused() -> None:
    made = encode(encoder(chat_template()), talk("a", "b"), tools=[{"name": "f"}])
    assert isinstance(made, Refusal)
    assert "has 'tools', which the chat template leaves out" in str(made)


def test_a_token_over_the_border_of_a_turn_belongs_to_it() -> None:
    whole = tokenizer().encode(chat_template().render(talk("a", "    return"))[0])
    words = [tokenizer().decode([token]) for token in whole]
    assert "\n   " in words, "the tokenizer no longer joins a line break with the spaces behind it"
    assert counted(talk("a", "    return")) == "\n    return<|im_end|>\n"
