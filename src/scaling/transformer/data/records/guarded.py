"""Render messages, and distinguish the special tokens that the template writes from those that texts spell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scaling.transformer.data.records.controls import Controls, separator_for
from scaling.transformer.data.records.conversation import ASSISTANT
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.template import ChatTemplate

_PROBE: Final = ({"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"})


@dataclass(frozen=True)
class Guarded:
    """A rendering, and the same with a separator in every special token that its texts spell."""

    text: str
    marks: Sequence[tuple[int, int]]
    """Which characters are between generation tags."""
    messages: Sequence[dict[str, Any]]
    """As rendered with separators."""
    tools: Sequence[Any] | None
    real: str
    """The text with separators."""
    separator: str = ""
    """Empty: no text spells a special token."""
    written: Sequence[tuple[int, int]] | None = None
    """Where the template wrote special tokens. None: it wrote all that there are."""


def frame_of(template: ChatTemplate) -> str:
    """Return the rendering of two messages by a template; empty where it does not accept these."""
    try:
        return template.render(_PROBE)[0] + template.render(_PROBE[:1], prompt=True)[0]
    except Refusal:
        return ""


def guards_of(*, special: Collection[str], framing: Collection[str]) -> Mapping[str, Controls]:
    """Return the names that texts must not spell, by role; the empty role is for all others.

    An assistant may write added tokens that were never declared special: its thoughts may be enclosed in such tokens.
    """
    return {ASSISTANT: Controls(special), "": Controls(framing)}


def render_guarded(
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    guards: Mapping[str, Controls],
    *,
    tools: Sequence[Any] | None = None,
    prompt: bool = False,
) -> Guarded:
    """Render messages, and once more with separators where a text spells a special token or may be a part of one.

    Raises:
        Refusal: The template does not accept them, or depends on the spelled tokens.
    """
    given = [dict(message) for message in messages]
    text, marks = template.render(given, tools=tools, prompt=prompt)
    others = guards[""]
    texts = [{name: value for name, value in message.items() if name != "role"} for message in given]
    own = [guards.get(message["role"], others) for message in given]
    touched = any(guard.touched_by(one) for guard, one in zip(own, texts, strict=True))
    if not touched and (tools is None or not others.touched_by(list(tools))):
        return Guarded(text, marks, given, tools, real=text)
    separator = separator_for(text)
    given = [
        {**message, **guard.separated(one, separator)} for guard, one, message in zip(own, texts, given, strict=True)
    ]
    tools = None if tools is None else others.separated(list(tools), separator)
    real, _ = template.render(given, tools=tools, prompt=prompt)
    if real.replace(separator, "") != text:
        raise Refusal("a text spells a special token, which the template treats as one; take it out")
    return Guarded(text, marks, given, tools, real, separator, others.written(text, real, separator))
