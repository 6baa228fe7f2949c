"""Tokenize texts: special tokens are only those that the template wrote, never what a text spells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, final

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from scaling.core import DataError
from scaling.transformer.data.end_token import END_TOKENS
from scaling.transformer.data.plain_text import PlainText
from scaling.transformer.data.records.fields import Refusal
from scaling.transformer.data.records.turns import Rendered
from scaling.transformer.data.tokenizer import Tokenizer

_STAND_INS: Final = 0xF0000
"""The first of the characters of private use that stand in for special tokens."""

Tokenized = tuple[Sequence[int], Sequence[tuple[int, int]]]
"""Tokens, and the characters that each stands for: start and stop (exclusive)."""


@final
class TextTokenizer:
    """Tokenizer of renderings and of pieces of text.

    `frame` is the chat template's rendering of an arbitrary conversation: the added tokens in it frame turns, and only
    the template may write them, even where they were never declared special.
    """

    def __init__(self, tokenizer: Tokenizer, *, eos_token: str, frame: str = "") -> None:
        self._serialized = tokenizer.to_str()
        self._eos_token = eos_token
        self._backend = _backend(self._serialized)
        added = self._backend.get_added_tokens_decoder().values()
        self.added: frozenset[str] = frozenset(token.content for token in added)
        known = {name for name in (*END_TOKENS, eos_token) if self._backend.token_to_id(name) is not None}
        self.special: frozenset[str] = frozenset(token.content for token in added if token.special) | known
        self.framing: frozenset[str] = self.special | {name for name in self.added if name in frame}

    @cached_property
    def _plain(self) -> Tokenizer:
        return Tokenizer(self._serialized, plain_text=True, end_token=self._eos_token)

    @cached_property
    def _continuing(self) -> Tokenizer:
        """The same tokenizer, which puts no space before a text."""
        edited = json.dumps(_without_space(json.loads(self._serialized)))
        return Tokenizer(edited, plain_text=True, end_token=self._eos_token)

    def pieces(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Return the tokens of each piece of each text, each encoded by itself: a prompt is as at inference."""
        first = iter(self._plain.encode_batch([pieces[0] for pieces in texts]))
        later = iter(self._continuing.encode_batch([piece for pieces in texts for piece in pieces[1:]]))
        return [[next(first), *(next(later) for _ in pieces[1:])] for pieces in texts]

    def renderings(self, rendered: Sequence[Rendered]) -> list[Tokenized | Refusal]:
        """Return the tokens of each text as a whole; no special tokens are added, for templates write them."""
        plain = iter(self._encode(self._backend, [one.text for one in rendered if one.written is None]))
        return [
            self._separately(one, one.written) if one.written is not None else _tokenized(next(plain))
            for one in rendered
        ]

    def _separately(self, rendered: Rendered, written: Sequence[tuple[int, int]]) -> Tokenized | Refusal:
        """Encode a text that spells special tokens: those that the template wrote are renamed first.

        The new names are as long, so that characters keep their places, and the tokenizer treats them as it does the
        tokens. Whatever else looks like a special token is text.
        """
        text = rendered.text
        if any(ord(character) >= _STAND_INS for character in text):
            return Refusal("a text spells a special token and has characters of private use; take one of them out")
        letters = list(text)
        for start, stop in written:
            letters[start:stop] = self._renamed[text[start:stop]]
        (encoding,) = self._encode(self._backend_of_renamed, ["".join(letters)])
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for number, place in zip(*_tokenized(encoding), strict=True):
            meant = self._ids_of_renamed.get(number)
            try:
                made = self._letters.keep([number]) if meant is None else [meant]
            except DataError as error:
                return Refusal(str(error))
            ids += made
            places += [place] * len(made)
        return ids, places

    @cached_property
    def _renamed(self) -> dict[str, str]:
        names = sorted(self.framing)
        return {name: chr(_STAND_INS + number) * len(name) for number, name in enumerate(names)}

    @cached_property
    def _backend_of_renamed(self) -> Backend:
        content = json.loads(self._serialized)
        listed = {token["content"] for token in content["added_tokens"]}
        for token in content["added_tokens"]:
            if token["content"] in self.framing:
                token["content"] = self._renamed[token["content"]]
        backend = _backend(json.dumps(content))
        backend.add_tokens([self._renamed[name] for name in sorted(self.framing - listed)])
        return backend

    @cached_property
    def _ids_of_renamed(self) -> dict[int, int]:
        """Map from ids of the tokenizer with the new names to the original ids.

        Names without a place in the vocabulary of the model get the next ids, and the tokens after them may get other
        ids too.
        """
        found = {}
        for name in self.added | self.framing:
            number = self._backend_of_renamed.token_to_id(self._renamed.get(name, name))
            meant = self._backend.token_to_id(name)
            if number is not None and meant is not None:
                found[number] = meant
        return found

    @cached_property
    def _letters(self) -> PlainText:
        backend = _backend(self._serialized)
        backend.encode_special_tokens = True
        return PlainText(backend, self._serialized, ends=(*END_TOKENS, self._eos_token))

    def _encode(self, backend: Backend, texts: Sequence[str]) -> list[Encoding]:
        try:
            return list(backend.encode_batch(list(texts), add_special_tokens=False))
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(
                f"the tokenizer cannot encode every text ({error}); give one with a token for the unknown"
            ) from error


def _backend(serialized: str) -> Backend:
    backend = Backend.from_str(serialized)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _tokenized(encoding: Encoding) -> Tokenized:
    return encoding.ids, encoding.offsets


def _without_space(part: Any) -> Any:
    """Return a tokenizer, or a part of one, that puts no space before a text."""
    if isinstance(part, list):
        return [_without_space(one) for one in part]
    if not isinstance(part, dict):
        return part
    edited = dict(part)
    for name in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
        if name in edited:
            edited[name] = _without_space(edited[name])
    match edited.get("type"):
        case "Prepend":
            return {"type": "Sequence", "normalizers": []}
        case "Metaspace":
            edited["prepend_scheme"] = "never"
    if "add_prefix_space" in edited:
        edited["add_prefix_space"] = False
    return edited
