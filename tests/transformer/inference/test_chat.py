"""Conversations become the text and the tokens that transformers makes of them, and fit the model's context."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from scaling.core import ConfigError, DataError
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

TALKS = [
    talk("Hi <|"),
    talk("Hi!", "Hello.", "What is 1 < 2?"),
    talk("a\n", "<think>\nwell\n</think>\n\nb", " c ", "", "d"),
    talk("What is this?", system="Be brief."),
    talk("a", "b", "c", system="Be\nbrief."),
    talk("a", "b", "c")[1:],
]
FRAME = ("<|im_start|>", "<|im_end|>")
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
)


def names() -> list[str]:
    return sorted(name for name in template_files() if not name.startswith(WITH_IMAGES))


def theirs(source: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer().to_str()), **SPECIAL)
    made.chat_template = source
    return made


@pytest.mark.parametrize("name", names() or [pytest.param("", marks=pytest.mark.skip("trl is not installed"))])
def test_text_and_tokens_are_those_of_transformers(name: str) -> None:
    source = source_of(name)
    other, text = theirs(source), ChatText(tokenizer(), chat_template(source))
    for messages in TALKS:
        try:
            expected = other.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # of any kind, as templates raise
            reason = str(error)
            with pytest.raises(ConfigError, match=rf"^the chat template (refuses|fails on) it.*{re.escape(reason)}"):
                text.prompt(messages)
            continue
        made = text.prompt(messages)
        assert made.text == expected
        ids = other.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(made.tokens) == ids


PARTS = st.sampled_from([*FRAME, "<|im_", "end|>", "<", "|>", "<|endoftext|>", "<s>", "assistant\n", " a", "é", "\n"])
TEXTS = st.lists(PARTS, max_size=6).map("".join)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.none() | TEXTS)
def test_special_tokens_are_those_of_the_frame_alone(first: str, answer: str, second: str, system: str | None) -> None:
    known = tokenizer()
    special = {known.token_id(name) for name in (*FRAME, "<|endoftext|>", "<s>")}
    messages = talk(first, answer, second, system=system)
    frame = CHAT.prompt([{**message, "content": "x"} for message in messages])
    made = CHAT.prompt(messages)
    assert [one for one in made.tokens if one in special] == [one for one in frame.tokens if one in special]
    assert known.decode(made.tokens, skip_special_tokens=False) == made.text


CHAT = ChatText(tokenizer(), chat_template("{{ bos_token }}" + CHATML))


def begin_once(rank: int = 0, world_size: int = 1) -> None:
    """Spell what begins a text in a message."""
    made = CHAT.prompt(talk("<s>"))
    assert made.tokens[0] == tokenizer().token_id("<s>")
    assert list(made.tokens).count(made.tokens[0]) == 1


def test_what_begins_a_text_is_there_once() -> None:
    begin_once()
    without = ChatText(tokenizer(), chat_template()).prompt(talk("a"))
    assert without.tokens[0] == tokenizer().token_id("<|im_start|>")


def test_the_token_behind_an_answer_ends_it() -> None:
    assert CHAT.end_token_ids == {tokenizer().token_id("<|im_end|>")}
    assert ChatText(tokenizer(), chat_template(GEMMA)).end_token_ids == {tokenizer().token_id("<|endoftext|>")}
    assert not ChatText(tokenizer(), chat_template("{{ messages[-1].content }} and <|im_end|>")).end_token_ids


@pytest.mark.parametrize(
    ("source", "system", "message"),
    [
        (GEMMA, None, None),
        (CHATML, "Be\nbrief.", None),
        (GEMMA, "a", "refuses it: System role not supported; it takes no system message: leave it out, or name"),
        ("{{ messages[-1].content }}", "Be brief.", "the chat template leaves the system message out; do so too"),
        ("{{ 1 }}", None, "the chat template leaves out what the user says"),
        ("{{ 1 }}", "a", "the chat template leaves the system message out"),
        ("{{ ''.__class__.__mro__ }}", "a", "refuses it: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", None, "refuses it: .*append"),
        ("{{ cycler.__init__.__globals__ }}", None, "refuses it: access to attribute '__init__'"),
        ("{{ 'a' * 10**10 }}", None, "was stopped: it makes a text or a list of more than"),
        ("{{ raise_exception('\x1b[2J') }}", None, r"refuses it: \\x1b\[2J"),
        ("{{ messages.no.thing }}", None, "fails on it .*has no attribute 'no'|refuses it: .*has no attribute 'no'"),
    ],
)
def test_a_template_that_does_not_take_what_is_said_is_refused_before(
    source: str, system: str | None, message: str | None
) -> None:
    text = ChatText(tokenizer(), chat_template(source))
    if message is None:
        text.require_fits(system)
    else:
        with pytest.raises(ConfigError, match=message):
            text.require_fits(system)


def test_the_template_is_the_one_named_or_else_the_one_beside(tmp_path: Path) -> None:
    tokenizer().save(tmp_path / "vocab.json")
    known = Tokenizer.from_file(tmp_path / "vocab.json")
    with pytest.raises(ConfigError, match=r"no chat template beside .*vocab.json .*--template FILE"):
        chat_text(known)
    with pytest.raises(ConfigError, match="no chat template beside the tokenizer"):
        chat_text(tokenizer())
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").write_text("no")
    with pytest.raises(ConfigError, match=r"names 'tools', and none is the default; name one with .*tools\.jinja"):
        chat_text(known)
    said = "{{ bos_token }}%s{{ messages[0].content }}"
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text(said % "additional ")
    assert chat_text(known).prompt(talk("a")).text == "additional a"
    config = {"chat_template": said % "config ", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_text(known).prompt(talk("a")).text == "<s>config a"
    (tmp_path / "chat_template.jinja").write_text(said % "file ")
    assert chat_text(known).prompt(talk("a")).text == "<s>file a"
    (tmp_path / "other.jinja").write_text(said % "named ")
    assert chat_text(known, tmp_path / "other.jinja").prompt(talk("a")).text == "<s>named a"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**config, "bos_token": {"content": "<|im_start|>"}}))
    assert chat_text(known, other).prompt(talk("a")).text == "<|im_start|>config a"
    other.write_text("{}")
    for path, message in ((other, "has no chat_template"), (tmp_path / "none.json", "no such file")):
        with pytest.raises(DataError, match=message):
            chat_text(known, path)


def conversation(*, context_length: int | None, system: str | None = None, max_tokens: int = 5) -> Conversation:
    messages = talk(system=system)
    return Conversation(CHAT, messages=messages, context_length=context_length, max_tokens=max_tokens)


def size(*contents: str, system: str | None = None) -> int:
    return len(CHAT.prompt(talk(*contents, system=system)).tokens)


def fill_the_context(rank: int = 0, world_size: int = 1) -> None:
    """Leave out the oldest turns whole."""
    room = size("a", "b", "c", "d", "e", system="Be brief.") + 40
    made = conversation(context_length=room, system="Be brief.", max_tokens=40)
    for content, answer in (("a", "b"), ("c", "d"), ("e", "f")):
        asked = made.ask(content)
        assert asked.left_out == 0
        made.answered(asked, answer)
    asked = made.ask("g")
    assert asked.left_out == 1
    kept = talk("c", "d", "e", "f", "g", system="Be brief.")
    assert asked.prompt == CHAT.prompt(kept)
    assert made.ask("g").left_out == 1  # until it is answered nothing has changed
    made.answered(asked, "h")
    assert made.ask("i").left_out == 1
    every = talk("a", "b", "c", "d", "e", "f", "g", "h", system="Be brief.")
    assert made.messages == every
    made.reset()
    assert (made.messages, made.turns) == (talk(system="Be brief."), 0)


def test_the_oldest_turns_are_left_out_whole_when_the_context_is_full() -> None:
    fill_the_context()


def test_a_message_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    made = conversation(context_length=60)
    made.answered(made.ask("one"), "two")
    needed = size("long " * 40)
    with pytest.raises(
        ConfigError, match=rf"by itself it has {needed} tokens, and 5 .* has 60; shorten it by {needed - 55}"
    ):
        made.ask("long " * 40)
    assert made.messages == talk("one", "two")
    assert made.ask("three").left_out == 0
    fits = Conversation(CHAT, context_length=needed + 5, max_tokens=5).ask("long " * 40)
    assert len(fits.prompt.tokens) == needed
    with pytest.raises(ConfigError, match=r"max_tokens \(60\) leaves no room .* has 60 tokens; set it to at most 59"):
        conversation(context_length=60, max_tokens=60)
    assert conversation(context_length=None).ask("long " * 400).left_out == 0


def test_a_conversation_may_begin_with_the_assistant() -> None:
    opened = [{"role": "assistant", "content": "Welcome!"}]
    made = Conversation(CHAT, messages=opened, context_length=None, max_tokens=5)
    assert made.ask("a").prompt == CHAT.prompt([*opened, *talk("a")])
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('The user begins') }}{% endif %}"
    text = ChatText(tokenizer(), chat_template(strict))
    with pytest.raises(ConfigError, match="the chat template refuses it: The user begins"):
        Conversation(text, messages=opened, max_tokens=5).ask("a")


def test_what_is_no_text_is_refused() -> None:
    for content, message in (("a\0", "a message has a NUL character"), ("\udcff", "half a surrogate pair")):
        with pytest.raises(ConfigError, match=message):
            CHAT.prompt(talk(content))
