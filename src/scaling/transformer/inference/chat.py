"""Conversations: messages to tokens by the tokenizer's chat template, and a history that is cut at whole turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from scaling.core import ConfigError
from scaling.transformer.data.records.conversation import ASSISTANT, SYSTEM_ROLES
from scaling.transformer.data.records.fields import Refusal, require_characters
from scaling.transformer.data.records.guarded import frame_of, guards_of, render_guarded
from scaling.transformer.data.records.template import TEMPLATE_FILE, ChatTemplate
from scaling.transformer.data.records.texts import TextTokenizer
from scaling.transformer.data.records.turns import Rendered
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer
from scaling.transformer.hf.companions import TEMPLATES
from scaling.transformer.inference.text import escaped

Message = Mapping[str, str]
"""A role and a content."""

_SYSTEM: Final = "system"
_USER: Final = "user"
_PROBE: Final = "What is asked"
_ANSWER: Final = "What is answered"


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt that the model answers."""

    text: str
    tokens: Sequence[int]


@final
class ChatText:
    """Text and tokens of messages; special tokens come only from the template, never from the spelling in a message."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._template = template
        frame = frame_of(template)
        texts = TextTokenizer(tokenizer, eos_token=tokenizer.eos_token or "", frame=frame)
        self._texts = texts
        self._guards = guards_of(special=texts.special, framing=texts.framing)
        self.end_token_ids = frozenset(self._ends(tokenizer))
        """The token that the template writes after an answer; empty where it writes none."""

    def prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """Return the prompt for the assistant's next answer. No tokens are added: templates write their own.

        Raises:
            ConfigError: The template does not accept the messages, or a content is not text.
        """
        try:
            require_characters([dict(message) for message in messages])
        except Refusal as refusal:
            raise ConfigError(f"a message has {refusal}; leave it out") from refusal
        try:
            made = render_guarded(messages, self._template, self._guards, prompt=True)
            (tokens,) = self._texts.renderings([Rendered(made.text, [], 0.0, made.written)])
            if isinstance(tokens, Refusal):
                raise tokens
        except Refusal as refusal:
            raise ConfigError(escaped(str(refusal))) from refusal  # worded by the template, which is not trusted
        return ChatPrompt(made.text, tokens[0])

    def require_fits(self, system: str | None) -> None:
        """Refuse a template that accepts no messages at all, or no system message where there is one.

        Raises:
            ConfigError: The template refuses a message, or leaves it out.
        """
        asked = {"role": _USER, "content": _PROBE}
        if system is None:
            self._require_said(asked)
            return
        try:
            said = self.prompt([{"role": _SYSTEM, "content": system}, asked]).text
        except ConfigError as error:
            self._require_said(asked)
            raise ConfigError(f"{error}; it takes no system message: leave it out, or name another template") from error
        if system.strip().split("\n")[-1].strip() not in said:
            raise ConfigError(
                f"{self._template.name} leaves the system message out; do so too, or name another template"
            )

    def _require_said(self, asked: Message) -> None:
        if asked["content"] not in self.prompt([asked]).text:
            raise ConfigError(f"{self._template.name} leaves out what the user says; name another template")

    def _ends(self, tokenizer: Tokenizer) -> Iterator[int]:
        """Yield the special token that follows an answer: a model that was trained with the template writes it."""
        try:
            text, _ = self._template.render(
                [{"role": _USER, "content": _PROBE}, {"role": ASSISTANT, "content": _ANSWER}]
            )
        except Refusal:
            return
        _, found, behind = text.rpartition(_ANSWER)
        first = next(self._guards[""].places(behind), None)
        if found and first is not None and not behind[: first[0]].strip():
            number = tokenizer.token_id(behind[slice(*first)])
            if number is not None:
                yield number


def chat_text(tokenizer: Tokenizer, named: Path | None = None) -> ChatText:
    """Return the conversion of messages to tokens: by the template in a file, or else by the one beside the tokenizer.

    Raises:
        ConfigError: There is no template.
        DataError: The template cannot be understood.
    """
    if named is not None:
        return ChatText(tokenizer, ChatTemplate.named(named, vocab_file=tokenizer.file))
    beside = tokenizer.file
    found = None if beside is None else ChatTemplate.beside(beside)
    if found is None and beside is not None:
        found = _additional(beside)
    if found is None:
        where = "the tokenizer" if beside is None else str(beside)
        raise ConfigError(
            f"there is no chat template beside {where} (neither {TEMPLATE_FILE} nor a chat_template in "
            "tokenizer_config.json); name one with --template FILE, a Jinja file or a tokenizer_config.json"
        )
    return ChatText(tokenizer, found)


def _additional(vocab_file: Path) -> ChatTemplate | None:
    """Return the template named default among those of a folder; refuse to choose among others."""
    files = {path.stem: path for path in sorted((vocab_file.parent / TEMPLATES).glob("*.jinja"))}
    if not files or vocab_file.name != TOKENIZER_FILE:
        return None
    if "default" in files:
        return ChatTemplate.from_file(files["default"], vocab_file=vocab_file)
    raise ConfigError(
        f"{vocab_file.parent / TEMPLATES} has chat templates of the names {', '.join(map(repr, files))}, and none is "
        f"the default; name one with --template FILE, as {next(iter(files.values()))}"
    )


@dataclass(frozen=True)
class Question:
    """A message to answer, with as much of the history as fits."""

    content: str
    prompt: ChatPrompt
    first: int
    """Index of the oldest turn in the prompt."""
    left_out: int
    """Number of turns that were in the prompt before and no longer fit."""


@final
class Conversation:
    """A system message and turns of user and assistant. Turns that no longer fit are left out, the oldest first.

    `messages` may be those of an earlier conversation, a system message first. `context_length`: the largest number of
    tokens of prompt and answer together, None for no limit; `max_tokens`: the number kept free for the answer.
    """

    def __init__(
        self,
        text: ChatText,
        *,
        messages: Sequence[Message] = (),
        context_length: int | None = None,
        max_tokens: int,
    ) -> None:
        if context_length is not None and max_tokens >= context_length:
            raise ConfigError(
                f"max_tokens ({max_tokens}) leaves no room for a message: the model's context has {context_length} "
                f"tokens; set it to at most {context_length - 1}, better to half of that"
            )
        self._text = text
        self._context_length = context_length
        self._max_tokens = max_tokens
        systems = 1 if messages and messages[0]["role"] in SYSTEM_ROLES else 0
        self._system = tuple(messages[:systems])
        self._turns: list[list[Message]] = []
        for message in messages[systems:]:
            if message["role"] == _USER or not self._turns:
                self._turns.append([])
            self._turns[-1].append(message)
        self._first = 0

    @property
    def messages(self) -> list[Message]:
        """All messages, including those that no longer fit."""
        return [*self._system, *(message for turn in self._turns for message in turn)]

    @property
    def turns(self) -> int:
        """Number of turns, including those that no longer fit."""
        return len(self._turns)

    def ask(self, content: str) -> Question:
        """Return the prompt for an answer to a message. The history changes only by `answered`.

        Raises:
            ConfigError: The message does not fit even without history, or the template does not accept it.
        """
        asked = {"role": _USER, "content": content}
        for first in range(self._first, len(self._turns) + 1):
            kept = (message for turn in self._turns[first:] for message in turn)
            prompt = self._text.prompt([*self._system, *kept, asked])
            if self._context_length is None or len(prompt.tokens) + self._max_tokens <= self._context_length:
                return Question(content, prompt, first, first - self._first)
            needed = len(prompt.tokens) + self._max_tokens - self._context_length
        raise ConfigError(
            f"the message does not fit: {'with the system message' if self._system else 'by itself'} it has "
            f"{len(prompt.tokens)} tokens, and {self._max_tokens} (max_tokens) are kept for the answer, but the "
            f"model's context has {self._context_length}; shorten it by {needed} tokens, or set max_tokens lower"
        )

    def answered(self, question: Question, content: str) -> None:
        """Add a message and its answer to the history."""
        self._turns.append([{"role": _USER, "content": question.content}, {"role": ASSISTANT, "content": content}])
        self._first = question.first

    def reset(self) -> None:
        """Forget all messages but the system message."""
        self._turns.clear()
        self._first = 0
