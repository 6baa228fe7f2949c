"""Distinguish the special tokens that a template writes from those that texts of a record spell out.

Where a text spells one, or begins or ends with a part of one, the conversation is rendered once more with a separator
between its letters, a character that occurs nowhere else: a token that is intact in that rendering is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, final

from scaling.transformer.data.records.fields import Refusal, texts_in

_SEPARATORS = range(0xE000, 0xF8FF)
"""Characters of private use."""


@final
class Controls:
    """The names of special tokens, searched for in texts; of those that begin at one place, the longest counts."""

    def __init__(self, names: Collection[str]) -> None:
        longest_first = sorted(filter(None, names), key=lambda name: (-len(name), name))
        self.names = frozenset(longest_first)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # A template may write the rest after or before a text. Even a single letter counts: a needless check is better
        # than a mistake.
        self._heads = tuple(sorted({name[:n] for name in longest_first for n in range(1, len(name))}))
        self._tails = tuple(sorted({name[n:] for name in longest_first for n in range(1, len(name))}))

    def touched_by(self, value: Any) -> bool:
        """Return whether a text in a JSON value contains a special token, or begins or ends with a part of one."""
        return any(
            text.startswith(self._tails) or text.endswith(self._heads) or self._pattern.search(text) is not None
            for text in texts_in(value)
        )

    def separated(self, value: Any, separator: str) -> Any:
        """Return a JSON value with the separator in special tokens that its texts spell, whole or in part at an end.

        Raises:
            Refusal: The name of a field spells one.
        """
        if isinstance(value, str):
            inside = self._pattern.sub(lambda found: found[0][:1] + separator + found[0][1:], value)
            before = separator if value.startswith(self._tails) else ""
            return before + inside + (separator if value.endswith(self._heads) else "")
        if isinstance(value, dict):
            if any(self._pattern.search(name) for name in value):
                raise Refusal("the name of a field spells a special token")
            return {name: self.separated(inner, separator) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.separated(inner, separator) for inner in value]
        return value

    def written(self, text: str, separated: str, separator: str) -> tuple[tuple[int, int], ...]:
        """Return where in a text the template wrote special tokens; `separated` is the same text with separators."""
        places: set[int] = set()
        for number, found in enumerate(re.finditer(re.escape(separator), separated)):
            places.add(found.start() - number)
        return tuple(
            found.span() for found in self._pattern.finditer(text) if places.isdisjoint(_inside(*found.span()))
        )

    def places(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where special tokens are in a text."""
        yield from (found.span() for found in self._pattern.finditer(text))


def _inside(start: int, stop: int) -> range:
    """Return the places within a token at which a separator makes it text; after it, if it has only one letter."""
    return range(start + 1, stop) if stop - start > 1 else range(stop, stop + 1)


def separator_for(text: str) -> str:
    """Return a character of private use that a text does not contain.

    Raises:
        Refusal: The text contains them all.
    """
    present = set(text)
    for number in _SEPARATORS:
        if chr(number) not in present:
            return chr(number)
    raise Refusal("the record holds every character of private use, and none is left to mark special tokens with")
