"""Find the assistant's turns in the text that a chat template makes from a conversation.

A template with generation tags marks them. For one without, each text of the assistant is replaced by a unique word. A
turn begins after the rendering, as a prompt, of the messages before it. It ends where the text after it begins to
depend on whether more messages follow: after the end-of-turn token and what belongs to it. The last turn ends with the
text. Putting the texts back has to give the real rendering, else the record is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scaling.transformer.data.records.controls import Controls
from scaling.transformer.data.records.conversation import ASSISTANT, Conversation, TrainOn
from scaling.transformer.data.records.fields import Refusal, texts_in
from scaling.transformer.data.records.guarded import render_guarded
from scaling.transformer.data.records.template import ChatTemplate

_TRIMS: Final[Sequence[Callable[[str], str]]] = (lambda text: text, str.strip, str.lstrip, str.rstrip)
"""How templates may trim texts."""


@dataclass(frozen=True)
class Turn:
    """The characters `start` to `stop` (exclusive), and the weight of the tokens that contain one of them."""

    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation, and which parts of it count."""

    text: str
    turns: Sequence[Turn]
    """In order, none within another."""
    weight: float
    """Weight of everything outside turns."""
    written: Sequence[tuple[int, int]] | None = None
    """Where the template wrote special tokens; the others are text. None: it wrote all that there are."""


def render_conversation(
    conversation: Conversation, template: ChatTemplate, controls: Mapping[str, Controls], train_on: TrainOn
) -> Rendered:
    """Render a conversation and find the parts that count; `controls` are the special tokens for texts of each role.

    Raises:
        Refusal: The template does not accept it, or the turns cannot be located for certain.
    """
    made = render_guarded(
        [message.fields for message in conversation.messages], template, controls, tools=conversation.tools
    )
    text, written = made.text, made.written
    _require_said(conversation, text, template)
    weights = _weights(conversation, train_on)
    rest = 1.0 if train_on is TrainOn.ALL else 0.0
    if all(weight == rest for weight in weights.values()):
        return Rendered(text, [], rest, written)
    if template.marks:
        turns = _turns_by_marks(made.marks, weights, uniform=train_on is TrainOn.ASSISTANT)
    else:
        wanted = {number: weight for number, weight in weights.items() if weight != rest}
        placeholders = _Placeholders(template, made.messages, made.tools, controls[""])
        turns = placeholders.turns(wanted, made.real, made.separator)
    return Rendered(text, turns, rest, written)


def _require_said(conversation: Conversation, text: str, template: ChatTemplate) -> None:
    """Refuse a text that the template leaves out; it may divide the text, but must write its last line."""
    for number, message in enumerate(conversation.messages, start=1):
        # A template may have reasons to leave out the text beside a call of tools.
        if message.role in (ASSISTANT, "user") and not message.fields.get("tool_calls"):
            lines = [line.strip() for said in message.texts for line in said.splitlines() if line.strip()]
            if lines and lines[-1] not in text:
                raise Refusal(f"{template.name} leaves out what message {number} says; does it take images with it?")


def _weights(conversation: Conversation, train_on: TrainOn) -> dict[int, float]:
    """Return the weight of each of the assistant's messages, by its place among all."""
    found = {
        number: message.counted(train_on)
        for number, message in enumerate(conversation.messages)
        if message.role == ASSISTANT
    }
    if train_on is TrainOn.LAST:
        last = max(found, default=None)
        found = {number: weight if number == last else 0.0 for number, weight in found.items()}
    return found


def _turns_by_marks(marks: Sequence[tuple[int, int]], weights: Mapping[int, float], *, uniform: bool) -> list[Turn]:
    """Give each stretch between generation tags the weight of its message."""
    if uniform and all(weight == 1 for weight in weights.values()):
        return [Turn(start, stop, 1.0) for start, stop in marks]
    stretches = list(marks)
    if len(stretches) != len(weights):  # the end of a conversation may be marked by itself
        stretches = []
        for start, stop in marks:
            if stretches and stretches[-1][1] == start:
                stretches[-1] = (stretches[-1][0], stop)
            else:
                stretches.append((start, stop))
    if len(stretches) != len(weights):
        raise Refusal(
            f"the template marks {len(stretches)} stretches of the text as written by the assistant, which has "
            f"{len(weights)} messages: which one has which weight cannot be told"
        )
    return [Turn(*stretch, weight) for stretch, weight in zip(stretches, weights.values(), strict=True)]


class _Placeholders:
    """The rendering with a unique word in the place of each text of the assistant."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        controls: Controls,
    ) -> None:
        self._template = template
        self._tools = tools
        self._controls = controls
        said = "".join(texts_in(list(messages)))
        salt = next(number for number in range(len(said) + 1) if f"reply{number}n" not in said)
        self._word = re.compile(rf"reply{salt}n(\d+)x")
        self._texts: list[str] = []
        self._replaced: list[dict[str, Any]] = []
        self._number: dict[int, int] = {}
        for place, fields in enumerate(messages):
            if fields["role"] == ASSISTANT:
                word = f"reply{salt}n{len(self._texts)}x"
                match fields.get("content"):
                    case str(said):
                        content: Any = word
                    case [{"text": str(said), **rest}]:
                        content = [{**rest, "text": word}]
                    case None:
                        raise Refusal(f"message {place + 1} calls tools and says nothing: {_NEEDS_MARKS}")
                    case _:
                        raise Refusal(f"message {place + 1} has several parts: {_NEEDS_MARKS}")
                self._number[place] = len(self._texts)
                self._replaced.append({**fields, "content": content})
                self._texts.append(said)
            else:
                self._replaced.append(dict(fields))
        self._text = self._render(len(messages))
        self._found = list(self._word.finditer(self._text))
        if [int(found[1]) for found in self._found] != list(range(len(self._texts))):
            raise Refusal(f"the template does not write each text of the assistant once, in order: {_NEEDS_MARKS}")

    def turns(self, weights: Mapping[int, float], real: str, separator: str) -> list[Turn]:
        """Return the turns of the messages at some places, in the real text without separators."""
        texts = self._as_written(real)
        found, end = [], 0
        for place, weight in weights.items():
            start, stop = self._start(place), self._stop(place)
            if start < end:
                raise Refusal(f"the turn of message {place + 1} begins before the one before it ends: {_NEEDS_MARKS}")
            begin, close = (len(self._put_back(place, texts).replace(separator, "")) for place in (start, stop))
            found.append(Turn(begin, close, weight))
            end = stop
        return found

    def _render(self, count: int, *, prompt: bool = False) -> str:
        return self._template.render(self._replaced[:count], tools=self._tools, prompt=prompt)[0]

    def _as_written(self, real: str) -> list[str]:
        """Return the texts as the template writes them, after checking that they give the real rendering."""
        for trim in _TRIMS:
            texts = [trim(text) for text in self._texts]
            if self._put_back(len(self._text), texts) == real:
                return texts
        raise Refusal(f"the template changes what the assistant says, so that it cannot be found: {_NEEDS_MARKS}")

    def _put_back(self, place: int, texts: Sequence[str]) -> str:
        """Return the text before a place that is in no word, with the words replaced by the texts."""
        pieces = self._word.split(self._text[:place])[::2]
        return pieces[0] + "".join(map(str.__add__, texts, pieces[1:]))

    def _start(self, place: int) -> int:
        """Return where the turn of a message begins: after the prompt that leads to it."""
        word = self._found[self._number[place]].start()
        prompt = self._render(place, prompt=True)
        if self._text.startswith(prompt) and len(prompt) <= word:
            return len(prompt)
        # Earlier messages may be rendered differently where others follow, but not the words that lead to the turn.
        lead = prompt[_common(self._render(place), prompt, self._controls) :]
        if lead and self._text.endswith(lead, 0, word):
            return word
        raise Refusal(
            f"the prompt for an answer does not lead to message {place + 1} as the template writes it: {_NEEDS_MARKS}"
        )

    def _stop(self, place: int) -> int:
        """Return where the turn of a message ends: after the text that ends it, whether others follow or not."""
        word = self._found[self._number[place]]
        behind = self._text[word.end() :]
        if place + 1 == len(self._replaced):
            stop = len(behind)
        else:
            cut = self._render(place + 1)
            last = [found.end() for found in self._word.finditer(cut) if int(found[1]) == self._number[place]]
            if len(last) != 1:
                raise Refusal(f"the template does not write message {place + 1} once as the last: {_NEEDS_MARKS}")
            alone = cut[last[0] :]
            stop = _common(alone, behind, self._controls)
            if not (stop == len(alone) or self._token_at(alone, stop) or self._token_at(behind, stop)):
                raise Refusal(f"where the turn of message {place + 1} ends cannot be told: {_NEEDS_MARKS}")
        # A space after the end belongs to the next turn's first token, if its tokenizer has tokens that begin with a
        # space.
        stop = len(behind[:stop].rstrip(" "))
        if stop == 0:
            raise Refusal(
                f"the template writes nothing that ends the turn of message {place + 1}, so that a model would never "
                f"learn to end its own: {_NEEDS_MARKS}"
            )
        return word.end() + stop

    def _token_at(self, text: str, place: int) -> bool:
        return any(start == place for start, _ in self._controls.places(text))


_NEEDS_MARKS: Final = "it takes a template with generation tags to tell where the assistant's turns are"


def _common(left: str, right: str, controls: Controls) -> int:
    """Return the length of the common beginning of two texts, not ending within a special token of either."""
    place = next((n for n, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), None)
    if place is None:
        place = min(len(left), len(right))
    for text in (left, right):
        for start, stop in controls.places(text):
            if start < place < stop:
                place = start
    return place
