"""The formats that records come in: how each is recognised, and what its fields mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol

from scaling.transformer.data.records.chat_formats import (
    AlpacaFormat,
    MessagesFormat,
    ShareGptFormat,
    read_messages,
    read_tools,
)
from scaling.transformer.data.records.conversation import Conversation, Piece, Pieces, Tokens, require_order
from scaling.transformer.data.records.fields import Refusal, a_list, a_text, an_object, field, kind, names

UNLEARNT: Final = -100
"""The label of a token that does not count."""


class RecordFormat(Enum):
    """The formats of records, by the names they have on the command line and in configurations."""

    PROMPT_COMPLETION = "prompt_completion"
    """`{"prompt", "completion"}`: texts, or lists of messages. The prompt may be a list of texts."""
    ALPACA = "alpaca"
    """`{"instruction", "input", "output", "system", "history"}`."""
    SHAREGPT = "sharegpt"
    """`{"conversations": [{"from", "value"}], "system", "tools"}`."""
    MESSAGES = "messages"
    """`{"messages": [{"role", "content", "weight"}], "tools"}`."""
    PIECES = "pieces"
    """`[{"type": "text", "content", "has_loss"}]`: texts that follow each other without a template."""
    TOKENS = "tokens"
    """`{"input_ids", "labels", "attention_mask"}`."""
    TEXT = "text"
    """`{"text"}`: all of it counts."""


class Format(Protocol):
    """A format of records."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format, whether it is valid or not."""

    def read(self, record: Any, folder: Path) -> Conversation | Pieces | Tokens:
        """Parse a record; `folder` is the folder of its file.

        Raises:
            Refusal: The record is not valid.
        """


class PromptCompletionFormat:
    """A prompt, which does not count, and its completion, which does."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, dict) and ("prompt" in record or "completion" in record)

    def read(self, record: Any, folder: Path) -> Conversation | Pieces:
        """Parse a record."""
        record = an_object(record, "the record")
        prompt, completion = field(record, "prompt"), field(record, "completion")
        if _of_messages(prompt) or _of_messages(completion):
            given = read_messages(a_list(prompt, "'prompt'"), what="'prompt'", given=True)
            learnt = read_messages(a_list(completion, "'completion'"), what="'completion'")
            require_order([*given, *learnt])
            return Conversation([*given, *learnt], read_tools(record.get("tools")))
        texts = prompt if isinstance(prompt, list) else [prompt]
        pieces = [Piece(_no_image(a_text(text, "'prompt'"), folder), learnt=False) for text in texts]
        return Pieces([*pieces, Piece(_something(a_text(completion, "'completion'")), learnt=True)], ends=True)


class PiecesFormat:
    """A list of texts, each with its own flag."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, list) and all(isinstance(one, dict) and "content" in one for one in record)

    def read(self, record: Any, folder: Path) -> Pieces:
        """Parse a record."""
        return Pieces(
            [_piece(one, f"element {n}") for n, one in enumerate(a_list(record, "the record"), 1)], ends=False
        )


class TokensFormat:
    """Tokens with labels, at the places of the tokens (not shifted by one)."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, dict) and "input_ids" in record

    def read(self, record: Any, folder: Path) -> Tokens:
        """Parse a record."""
        record = an_object(record, "the record")
        ids = _numbers(field(record, "input_ids"), "'input_ids'")
        labels = _numbers(field(record, "labels"), "'labels'")
        mask = _numbers(record["attention_mask"], "'attention_mask'") if "attention_mask" in record else [1] * len(ids)
        if not len(ids) == len(labels) == len(mask):
            raise Refusal(
                f"'input_ids' has {len(ids)} elements, 'labels' {len(labels)} and 'attention_mask' {len(mask)}; they "
                "have to be of one length"
            )
        for place, (token, label, seen) in enumerate(zip(ids, labels, mask, strict=True)):
            if seen not in (0, 1):
                raise Refusal(f"element {place} of 'attention_mask' is {seen}; it has to be 0 or 1")
            if label not in (UNLEARNT, token):
                raise Refusal(
                    f"element {place} of 'labels' is {label}, neither {UNLEARNT} nor the token there, {token}; "
                    "labels stand at the places of their tokens"
                )
        seen_at = [place for place, seen in enumerate(mask) if seen]
        if seen_at != list(range(len(ids)))[seen_at[0] if seen_at else 0 :][: len(seen_at)]:
            raise Refusal("'attention_mask' has a gap; only padding at either end may be masked")
        return Tokens([ids[place] for place in seen_at], [labels[place] != UNLEARNT for place in seen_at])


class TextFormat:
    """A plain text, all of which counts."""

    def recognises(self, record: Any) -> bool:
        """Return whether a record looks like one of this format."""
        return isinstance(record, dict) and "text" in record

    def read(self, record: Any, folder: Path) -> Pieces:
        """Parse a record."""
        text = a_text(field(an_object(record, "the record"), "text"), "'text'")
        return Pieces([Piece(_something(text), learnt=True)], ends=True)


FORMATS: Final[Mapping[RecordFormat, Format]] = {
    RecordFormat.TOKENS: TokensFormat(),
    RecordFormat.MESSAGES: MessagesFormat(),
    RecordFormat.SHAREGPT: ShareGptFormat(),
    RecordFormat.ALPACA: AlpacaFormat(),
    RecordFormat.PROMPT_COMPLETION: PromptCompletionFormat(),
    RecordFormat.PIECES: PiecesFormat(),
    RecordFormat.TEXT: TextFormat(),
}
"""In the order in which they are tried: a more specific format comes first."""


def recognise(record: Any) -> RecordFormat | None:
    """Return the format that a record looks like, None for an unknown one."""
    return next((name for name, form in FORMATS.items() if form.recognises(record)), None)


def unknown_format(record: Any) -> str:
    """Return a message that the format of a record is not known."""
    has = f"an object with the fields {names(list(record))}" if isinstance(record, dict) else kind(record)
    known = ", ".join(form.value for form in RecordFormat)
    return f"{has}, which is no known format of records; the formats are {known}"


def _of_messages(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def _something(text: str) -> str:
    if not text:
        raise Refusal("there is no text to learn: it is empty")
    return text


def _no_image(text: str, folder: Path) -> str:
    if text.endswith(".jpg") and len(text) < 1000 and "\n" not in text and (folder / text).is_file():
        raise Refusal(f"the prompt has an image, {text}; there are no image encoders here")
    return text


def _piece(value: Any, what: str) -> Piece:
    element = an_object(value, what)
    type_of = field(element, "type", of=what)
    if type_of != "text":
        raise Refusal(f"{what} is of the type {type_of!r}; only 'text' can be used")
    learnt = element.get("has_loss", False)
    if not isinstance(learnt, bool):
        raise Refusal(f"'has_loss' of {what} is {kind(learnt)}, not true or false")
    return Piece(a_text(field(element, "content", of=what), f"'content' of {what}"), learnt)


def _numbers(value: Any, what: str) -> Sequence[int]:
    values = a_list(value, what)
    for place, one in enumerate(values):
        if type(one) is not int:
            raise Refusal(f"element {place} of {what} is {kind(one)}, not a whole number")
    return values
