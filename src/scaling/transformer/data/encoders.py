"""Encode many texts at once, with `tokenizers` or gigatoken, into one array of tokens and the length of each text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import chain
from typing import Any, Final, Protocol, final

import numpy as np
from numpy.typing import NDArray

from scaling.transformer.data.tokenizer import Tokenizer

RENEWED_AFTER: Final = 64 << 20
"""Characters after which gigatoken starts with an empty cache: it keeps every word that it has ever seen, up to about
8 bytes for each byte of text."""

BETWEEN: Final = "\0"
SHORT: Final = 1000
"""Mean length of texts, in characters, from which on one call for each is cheaper than joining them."""
PROBE: Final = ("a", " a b ", "", "\n\n", " ", "\ta.", "a  ", "a", "")
"""Texts whose tokens change where a tokenizer treats a text after another one as its continuation."""
_AS_IT_STANDS: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

LATE: Final = (
    *((0x0558, 0x0558), (0x058B, 0x058C), (0x05C8, 0x05C9), (0x088F, 0x088F), (0x0897, 0x0897), (0x0B53, 0x0B54)),
    *((0x0C5C, 0x0C5C), (0x0CDC, 0x0CDC), (0x0CF3, 0x0CF3), (0x0ECE, 0x0ECE), (0x1ACF, 0x1AF0), (0x1B4E, 0x1B4F)),
    *((0x1B7F, 0x1B7F), (0x1C89, 0x1C8A), (0x208F, 0x208F), (0x209D, 0x209F), (0x20C1, 0x20C4), (0x2427, 0x2429)),
    *((0x2B96, 0x2B96), (0x2E60, 0x2E63), (0x2FFC, 0x2FFF), (0x31E4, 0x31E5), (0x31EF, 0x31EF), (0xA7CB, 0xA7DD)),
    *((0xA7E2, 0xA7E2), (0xA7F1, 0xA7F1), (0xAB6C, 0xAB6D), (0xFBC3, 0xFBD2), (0xFD90, 0xFD91), (0xFDC8, 0xFDCE)),
)
"""Characters of the basic plane that Unicode has since version 15, as ranges (both ends included)."""
SETTLED: Final = ((0x1D400, 0x1D6A5), (0x1D6A8, 0x1D7FF), (0x1F000, 0x1FAFF), (0x20000, 0x2A6DF))
"""Characters beyond the basic plane that are in use and undisputed: mathematical letters, emoji, ideographs."""


class Engine(str, Enum):
    """Library that turns text into tokens."""

    AUTO = "auto"
    """gigatoken where it is installed and its tokens are those of `tokenizers`."""
    GIGATOKEN = "gigatoken"
    TOKENIZERS = "tokenizers"


@dataclass(frozen=True)
class Encoded:
    """The tokens of several texts, one after the other, and how many each text has."""

    tokens: NDArray[Any]
    lengths: NDArray[np.int64]

    def ended(self, end: int | None, dtype: np.dtype[Any]) -> Encoded:
        """Return the tokens in a type, with `end` (if any) after those of each text that has some."""
        tokens = self.tokens.astype(dtype)
        if end is None:
            return Encoded(tokens, self.lengths)
        some = self.lengths > 0
        behind = np.cumsum(self.lengths)[some]
        return Encoded(np.insert(tokens, behind, end), self.lengths + some)


class Encoder(Protocol):
    """Encoder of texts."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the tokens of texts without special ones."""


@final
class SlowEncoder:
    """Encoder that uses the `tokenizers` library, which is the reference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the tokens of texts without special ones."""
        ids = self._tokenizer.encode_batch(texts)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return Encoded(np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum())), lengths)


@final
class FastEncoder:
    """Encoder that uses gigatoken, and `tokenizers` for those few texts on which the two may differ.

    These are texts in whose encoding a special token occurs, and texts with characters so new that libraries, each with
    its own edition of Unicode, do not agree on whether they are letters. The tokenizer has to be one for plain text.

    Short texts are joined by a token that is added for this, NUL, which no document contains, and encoded in one call.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        import gigatoken

        content = json.loads(tokenizer.to_str())
        # Tokens that are not in this list are plain text. gigatoken looks for special ones only, `tokenizers` for the
        # others only.
        added = [{**token, "special": True} for token in content.get("added_tokens") or () if not token["special"]]
        self._between = tokenizer.vocab_size
        added.append({"id": self._between, "content": BETWEEN, "special": True, **_AS_IT_STANDS})
        self._content = json.dumps({**content, "added_tokens": added})
        self._make = gigatoken.Tokenizer.from_json
        self._backend = self._make(self._content)
        self._characters = 0
        self._slow = SlowEncoder(tokenizer)
        self._special = np.zeros(max(self._between + 1, self._backend.vocab_size), np.bool_)
        self._special[[*sorted(tokenizer.kept_from_texts), self._between]] = True
        apart, joined = self._apart(PROBE), self._joined(PROBE)
        self._joins = np.array_equal(apart.tokens, joined.tokens) and np.array_equal(apart.lengths, joined.lengths)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the tokens of texts without special ones."""
        size = sum(map(len, texts))
        if self._characters + size > RENEWED_AFTER and self._characters:
            self._backend, self._characters = self._make(self._content), 0
        self._characters += size
        encoded = self._joined(texts) if self._joins and size < SHORT * len(texts) else self._apart(texts)
        again = _disputed(texts)
        if (special := self._special[encoded.tokens]).any():
            again |= set(np.repeat(np.arange(len(texts)), encoded.lengths)[special].tolist())
        return self._replaced(encoded, texts, sorted(again)) if again else encoded

    def _joined(self, texts: Sequence[str]) -> Encoded:
        tokens = self._backend.encode(BETWEEN.join(texts))
        places = np.flatnonzero(tokens == self._between)
        if len(places) != len(texts) - 1:  # a text contains NUL, or there is no text
            return self._apart(texts)
        return Encoded(np.delete(tokens, places), np.diff(places, prepend=-1, append=len(tokens)) - 1)

    def _apart(self, texts: Sequence[str]) -> Encoded:
        rows = [self._backend.encode(text) for text in texts]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return Encoded(np.concatenate([np.empty(0, np.uint32), *rows]), lengths)

    def _replaced(self, encoded: Encoded, texts: Sequence[str], again: list[int]) -> Encoded:
        parts = np.split(encoded.tokens.astype(np.int64), np.cumsum(encoded.lengths)[:-1])
        slow = self._slow.encode([texts[number] for number in again])
        for number, tokens in zip(again, np.split(slow.tokens, np.cumsum(slow.lengths)[:-1]), strict=True):
            parts[number] = tokens
        return Encoded(np.concatenate(parts), np.array([part.size for part in parts], np.int64))


def _disputed(texts: Sequence[str]) -> set[int]:
    """Return which texts have a character on which editions of Unicode differ."""
    others = [number for number, text in enumerate(texts) if not text.isascii()]
    if not others or not _any_disputed("".join(texts[number] for number in others)):
        return set()
    return {number for number in others if _any_disputed(texts[number])}


def undisputed(text: str) -> str:
    """Return the characters of a text on which all editions of Unicode agree."""
    numbers = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return numbers[~_table()[numbers]].tobytes().decode("utf-32-le")


def _any_disputed(text: str) -> bool:
    return bool(_table()[np.frombuffer(text.encode("utf-32-le"), np.uint32)].any())


@cache
def _table() -> NDArray[np.bool_]:
    """Return for each character whether editions of Unicode differ on it."""
    table = np.ones(0x110000, np.bool_)
    table[:0x10000] = [unicodedata.category(chr(number)) == "Cn" for number in range(0x10000)]
    for first, last in LATE:
        table[first : last + 1] = True
    for first, last in SETTLED:
        table[first : last + 1] = False
    return table
