"""Keep special tokens whose names documents spell out as text: no document may contain an end-of-document token."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import final

from tokenizers import Tokenizer as Backend

from scaling.core import DataError


@final
class PlainText:
    """Replacement of special tokens by the tokens of their letters.

    Most tokenizers never need this: they keep the text from becoming special tokens before their model sees it. But
    some models have `</s>` among their own pieces, and some tokens that end a document were never declared special.
    """

    def __init__(self, backend: Backend, serialized: str, *, ends: Iterable[str]) -> None:
        self._backend = backend
        self._serialized = serialized
        self._ends = {number for end in ends if (number := backend.token_to_id(end)) is not None}
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(self._ends | {number for number, token in added.items() if token.special})
        """The tokens that no text may become."""
        self._spelled: dict[int, list[int]] = {}

    def keep(self, ids: list[int]) -> list[int]:
        """Return the tokens of a text without special ones: each becomes the tokens of its letters."""
        if self.special.isdisjoint(ids):
            return ids
        special = self.special - self._unknown
        return [letter for number in ids for letter in (self._letters(number) if number in special else (number,))]

    @cached_property
    def _unknown(self) -> set[int]:
        """The token for text that the tokenizer does not know; it stands for other texts than its name."""
        model = json.loads(self._serialized)["model"]
        found = {model.get("unk_id"), self._backend.token_to_id(model.get("unk_token") or "")}
        return {number for number in found if number is not None} - self._ends

    def _letters(self, number: int) -> list[int]:
        if number not in self._spelled:
            name: str = self._backend.id_to_token(number) or ""
            spelled = [token for letter in name for token in self._letter(letter)]
            if not self.special.isdisjoint(set(spelled) - self._unknown):
                if number in self._ends:
                    raise DataError(
                        f"a document spells {name!r}, which ends documents, and the tokenizer has no other tokens to "
                        "write it with; remove it from the text, or name another end token with --eod-token"
                    )
                spelled = [number]
            self._spelled[number] = spelled
        return self._spelled[number]

    def _letter(self, letter: str) -> list[int]:
        number = self._backend.token_to_id(letter)
        # In a byte-level vocabulary some letters stand for other bytes than their own.
        if number is not None and self._backend.decode([number], skip_special_tokens=False) == letter:
            return [number]
        ids: list[int] = self._backend.encode(letter, add_special_tokens=False).ids
        return ids
