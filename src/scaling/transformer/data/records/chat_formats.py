"""The formats of conversations: alpaca, sharegpt, and the messages of OpenAI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scaling.transformer.data.records.conversation import (
    ASSISTANT,
    ROLES,
    TOOL,
    Conversation,
    Message,
    require_order,
    require_role,
    weight_of,
)
from scaling.transformer.data.records.fields import Refusal, a_list, a_text, an_object, field, kind

_SHAREGPT_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "function_call": ASSISTANT,
    "system": "system",
    "observation": TOOL,
    "tool": TOOL,
}


class MessagesFormat:
    """`{"messages": [{"role", "content"}]}`."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, dict) and "messages" in record

    def read(self, record: Any, folder: Path) -> Conversation:
        """Parse a record."""
        record = an_object(record, "the record")
        messages = read_messages(a_list(field(record, "messages"), "'messages'"), what="'messages'")
        require_order(messages)
        return Conversation(messages, read_tools(record.get("tools")))


class ShareGptFormat:
    """`{"conversations": [{"from", "value"}]}`; some files have role and content in their place."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, dict) and "conversations" in record

    def read(self, record: Any, folder: Path) -> Conversation:
        """Parse a record."""
        record = an_object(record, "the record")
        turns = a_list(field(record, "conversations"), "'conversations'")
        if all(isinstance(turn, dict) and "role" in turn for turn in turns):
            messages = read_messages(turns, what="'conversations'")
        else:
            messages = [_turn(turn, f"message {number}") for number, turn in enumerate(turns, start=1)]
        if record.get("system"):
            messages.insert(0, _message("system", a_text(record["system"], "'system'")))
        require_order(messages)
        return Conversation(messages, read_tools(record.get("tools")))


class AlpacaFormat:
    """`{"instruction", "input", "output"}`; instruction and input are joined by a newline."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, dict) and "instruction" in record

    def read(self, record: Any, folder: Path) -> Conversation:
        """Parse a record."""
        record = an_object(record, "the record")
        messages: list[Message] = []
        if record.get("system"):
            messages.append(_message("system", a_text(record["system"], "'system'")))
        history = record.get("history") or []
        if not isinstance(history, list):
            raise Refusal(f"'history' is {kind(history)}, not a list")
        for number, turn in enumerate(history, start=1):
            pair = a_list(turn, f"element {number} of 'history'")
            if len(pair) != 2:
                raise Refusal(
                    f"element {number} of 'history' has {len(pair)} elements; a question and an answer are due"
                )
            messages.append(_message("user", a_text(pair[0], f"the question {number} of 'history'")))
            messages.append(_message(ASSISTANT, a_text(pair[1], f"the answer {number} of 'history'")))
        asked = [a_text(field(record, "instruction"), "'instruction'"), _optional(record.get("input"), "'input'")]
        answer = a_text(field(record, "output"), "'output'")
        if not answer:
            raise Refusal("'output' is empty: there is no text to learn")
        messages += [_message("user", "\n".join(filter(None, asked))), _message(ASSISTANT, answer)]
        return Conversation(messages)


def read_messages(values: Sequence[Any], *, what: str, given: bool = False) -> list[Message]:
    """Read messages with role and content; `given`: they belong to a prompt.

    Raises:
        Refusal: A message is not valid. The order of messages is not checked.
    """
    return [_read_message(value, f"message {n} of {what}", given) for n, value in enumerate(values, start=1)]


def _read_message(value: Any, what: str, given: bool) -> Message:
    # A field without a value counts as missing, since templates would print it as "None".
    fields = {name: one for name, one in an_object(value, what).items() if one is not None}
    role = require_role(field(fields, "role", of=what), ROLES, what)
    weight = weight_of(fields.pop("weight", None), what)
    if role != ASSISTANT and weight:
        raise Refusal(f"{what} is of {role!r} and has a weight of {weight:g}; only the assistant's messages have one")
    if "content" in fields:
        fields["content"] = _content(fields["content"], f"'content' of {what}")
    elif role != ASSISTANT or not fields.get("tool_calls"):
        field(fields, "content", of=what)
    message = Message(role, fields, weight if role == ASSISTANT else None, given)
    if role == ASSISTANT and not given and not any(message.texts) and not fields.get("tool_calls"):
        raise Refusal(f"{what} is empty: there is no text to learn")
    return message


def _content(value: Any, what: str) -> str | list[Any]:
    """Return the content of a message: a text, or parts that are texts."""
    if not isinstance(value, list):
        return a_text(value, what)
    for number, part in enumerate(a_list(value, what), start=1):
        named = f"part {number} of {what}"
        kind_of = an_object(part, named).get("type", "text")
        if kind_of != "text":
            raise Refusal(f"{named} is of the type {kind_of!r}; only 'text' can be used")
        a_text(field(part, "text", of=named), f"'text' of {named}")
    return value


def _turn(value: Any, what: str) -> Message:
    turn = an_object(value, what)
    source = require_role(field(turn, "from", of=what), list(_SHAREGPT_ROLES), what)
    text = a_text(field(turn, "value", of=what), f"'value' of {what}")
    role = _SHAREGPT_ROLES[source]
    if role == ASSISTANT and not text:
        raise Refusal(f"{what} is empty: there is no text to learn")
    weight = weight_of(turn.get("weight"), what)
    return Message(role, {"role": role, "content": text}, weight if role == ASSISTANT else None)


def _message(role: str, text: str) -> Message:
    return Message(role, {"role": role, "content": text})


def _optional(value: Any, what: str) -> str:
    return "" if value is None else a_text(value, what)


def read_tools(value: Any) -> Sequence[Any] | None:
    """Return the tools, None where there are none; some files hold them as JSON text.

    Raises:
        Refusal: The tools are not valid.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Refusal(f"'tools' is text that is not JSON ({error})") from error
    if not value:
        return None
    return [an_object(tool, f"element {n} of 'tools'") for n, tool in enumerate(a_list(value, "'tools'"), start=1)]
