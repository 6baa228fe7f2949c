"""Chat templates: turn conversations into text, by the template beside a tokenizer or one in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

from jinja2 import meta
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from scaling.core import DataError
from scaling.transformer.data.end_token import TOKENIZER_OF_A_MODEL, TOKENIZER_OF_A_RUN
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.limits import Overrun
from scaling.transformer.data.records.sandbox import compile_template, render

TEMPLATE_FILE: Final = "chat_template.jinja"
_CONFIG: Final = "tokenizer_config.json"
_SPECIAL: Final = "special_tokens_map.json"
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")
"""The names of a message's field of reasoning; templates know one of the first two."""

_PROBE: Final = "What is asked"


@final
class ChatTemplate:
    """A chat template, with the special tokens that it may name (`bos_token` and the like)."""

    def __init__(self, source: str, *, name: str = "the chat template", special: Mapping[str, str] | None = None):
        self.source = source
        self.name = name
        self.special = dict(special or {})
        try:
            self._compiled = compile_template(source)
        except TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise DataError(f"{name}{line} is not a Jinja template ({error}); mend it, or name another one") from error

    @classmethod
    def from_file(cls, path: Path, *, vocab_file: Path | None = None) -> ChatTemplate:
        """Read a template; the special tokens are those named beside `vocab_file`.

        Raises:
            DataError: The file cannot be read, or is no template.
        """
        special = {} if vocab_file is None else special_tokens_beside(vocab_file)
        return cls(_text(path), name=f"the chat template {path}", special=special)

    @classmethod
    def beside(cls, vocab_file: Path) -> ChatTemplate | None:
        """Return the template that belongs to a tokenizer, which is beside the tokenizer's file. None: there is none.

        Raises:
            DataError: A file exists but cannot be understood.
        """
        if vocab_file.name not in (TOKENIZER_OF_A_MODEL, TOKENIZER_OF_A_RUN):
            return None
        own = vocab_file.parent / TEMPLATE_FILE
        if own.is_file():
            return cls.from_file(own, vocab_file=vocab_file)
        return cls._of_config(vocab_file.parent / _CONFIG, special=special_tokens_beside(vocab_file))

    @classmethod
    def named(cls, path: Path, *, vocab_file: Path | None = None) -> ChatTemplate:
        """Read a template that a user names: a file with one, or a tokenizer_config.json.

        Raises:
            DataError: The file cannot be read, or has no template.
        """
        if path.suffix != ".json":
            return cls.from_file(path, vocab_file=vocab_file)
        if not path.is_file():
            raise DataError(f"the chat template {path} cannot be read: there is no such file")
        special = {} if vocab_file is None else special_tokens_beside(vocab_file)
        found = cls._of_config(path, special=special | _special_tokens(path))
        if found is None:
            raise DataError(f"{path} has no chat_template; name a file with one")
        return found

    @classmethod
    def _of_config(cls, path: Path, *, special: Mapping[str, str]) -> ChatTemplate | None:
        found = _object(path).get("chat_template")
        if isinstance(found, list):  # several by name
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("default")
            if found is None:
                raise DataError(
                    f"{path} has chat templates of the names {', '.join(map(repr, named)) or 'none'}, and none of the "
                    "name 'default'; write the one to use to a file and name that"
                )
        if found is None:
            return None
        if not isinstance(found, str):
            raise DataError(f"chat_template in {path} is no text; mend it, or name a file with a template")
        return cls(found, name=f"the chat template in {path}", special=special)

    @cached_property
    def _variables(self) -> frozenset[str]:
        return frozenset(meta.find_undeclared_variables(self._compiled.environment.parse(self.source)))

    @cached_property
    def marks(self) -> bool:
        """Return whether the template marks the assistant's text by generation tags."""
        tokens = self._compiled.environment.lex(self.source)
        return any(kind == "name" and value == "endgeneration" for _, kind, value in tokens)

    @cached_property
    def _takes(self) -> tuple[bool, bool]:
        """Return whether the template writes contents that are texts, and contents that are lists of parts."""
        found = []
        for content in (_PROBE, _parts(_PROBE)):
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
            try:
                text, _ = render(self._compiled, {**self.special, "messages": messages, "add_generation_prompt": False})
            except Exception:  # a template may raise any exception
                text = ""
            found.append(text.count(_PROBE) == 2 and "'type'" not in text)
        return found[0] or not found[1], found[1]

    def _shaped(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message with its content in a shape that the template writes, unchanged if possible."""
        content = message.get("content")
        texts, parts = self._takes
        if isinstance(content, str) and not texts:
            content = _parts(content)
        elif isinstance(content, list) and not parts:
            content = "".join(part["text"] for part in content)
        shaped = dict(message) if content is None else {**message, "content": content}
        reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
        return shaped if reasoning is None else {"thinking": reasoning, **shaped, "reasoning_content": reasoning}

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of messages, and which characters are between generation tags.

        `prompt`: an answer of the assistant is to follow.

        Raises:
            Refusal: The template does not accept them.
        """
        if tools is not None and "tools" not in self._variables:
            raise Refusal(f"the record has 'tools', which {self.name} leaves out")
        variables: dict[str, Any] = {
            **self.special,
            "messages": [self._shaped(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        try:
            return render(self._compiled, variables)
        except Overrun as error:
            raise Refusal(f"{self.name} was stopped: {error}") from error
        except TemplateError as error:
            raise Refusal(f"{self.name} refuses it: {error}") from error
        except Exception as error:  # a template may raise any exception
            raise Refusal(f"{self.name} fails on it ({type(error).__name__}: {error})") from error


def special_tokens_beside(vocab_file: Path) -> dict[str, str]:
    """Return the special tokens that the files beside a tokenizer name: `bos_token`, `eos_token` and so on.

    Raises:
        DataError: A file exists but cannot be understood.
    """
    if vocab_file.name not in (TOKENIZER_OF_A_MODEL, TOKENIZER_OF_A_RUN):
        return {}
    found: dict[str, str] = {}
    for name in (_SPECIAL, _CONFIG):  # the second file wins
        found |= _special_tokens(vocab_file.parent / name)
    return found


def _special_tokens(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in _object(path).items():
        token = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(token, str):
            found[key] = token
    return found


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _object(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); mend it, or name a file with a chat template") from error
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
