"""Parsed records of all formats: a conversation for the chat template, pieces of text, or tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from scaling.transformer.data.records.fields import Refusal, kind, names

SYSTEM_ROLES: Final = ("system", "developer")
ASSISTANT: Final = "assistant"
TOOL: Final = "tool"
ROLES: Final = (*SYSTEM_ROLES, "user", ASSISTANT, TOOL)


class TrainOn(Enum):
    """Which tokens of a record count in the loss."""

    ASSISTANT = "assistant"
    """The text of the assistant, with the end of each turn; in other formats, the text to be learnt."""
    LAST = "last"
    """Only the last of those turns or texts."""
    ALL = "all"
    """Every token."""


@dataclass(frozen=True)
class Message:
    """A turn of a conversation."""

    role: str
    fields: Mapping[str, Any]
    """The input of the chat template: role, content and any other field of the record."""
    weight: float | None = None
    """The weight of an assistant's turn where the record names one."""
    given: bool = False
    """Whether it belongs to the prompt: an assistant's turn in it does not count, unless every token does."""

    @property
    def texts(self) -> Sequence[str]:
        """The texts of the message, by parts; empty where it only calls tools."""
        match self.fields.get("content"):
            case str(text):
                return [text]
            case list(parts):
                return [part["text"] for part in parts]
        return []

    def counted(self, train_on: TrainOn) -> float:
        """Return the weight of its tokens, regardless of which turn is the last."""
        if train_on is TrainOn.ALL:
            return 1.0 if self.weight is None else self.weight
        if self.role != ASSISTANT or self.given:
            return 0.0
        return 1.0 if self.weight is None else self.weight


@dataclass(frozen=True)
class Conversation:
    """Messages, and the tools that the assistant may call."""

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of text."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Pieces:
    """Text without a template: the pieces follow each other directly."""

    pieces: Sequence[Piece]
    ends: bool
    """Whether the end-of-document token follows, and is learnt."""


@dataclass(frozen=True)
class Tokens:
    """A record that was tokenized elsewhere."""

    ids: Sequence[int]
    learnt: Sequence[bool] = field(default=())


def weight_of(value: Any, what: str) -> float | None:
    """Return the weight of a message, None where it names none.

    Raises:
        Refusal: The value is no weight.
    """
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value) or value < 0:
        raise Refusal(f"the weight of {what} is {value!r} ({kind(value)}); it has to be a number of 0 or more")
    return float(value)


def require_role(role: Any, known: Sequence[str], what: str) -> str:
    """Return a role.

    Raises:
        Refusal: The role is none of those known.
    """
    if role not in known:
        raise Refusal(f"{what} has the unknown role {role!r}; the roles are {names(list(known))}")
    return str(role)


def require_order(messages: Sequence[Message]) -> None:
    """Refuse messages in an order that no conversation has.

    Raises:
        Refusal: A system message comes after others, a turn cannot follow the one before, or there is no turn.
    """
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        role = message.role
        if role in SYSTEM_ROLES:
            if number > 1:
                raise Refusal(f"message {number} is of {role!r}, which may only be the first")
            continue
        expected = {None: ("user",), ASSISTANT: ("user", TOOL), "user": (ASSISTANT,), TOOL: (ASSISTANT, TOOL, "user")}
        if role not in expected[before]:
            behind = "the first turn" if before is None else f"behind one of {before!r}"
            wanted = " or ".join(map(repr, expected[before]))
            raise Refusal(f"wrong order of roles: message {number} is of {role!r}, {behind}; {wanted} is due")
        before = role
    if before is None:
        raise Refusal("the conversation is empty but for the system's message")
