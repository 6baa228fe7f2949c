"""Patterns on names of parameters: which names they take, and which patterns match nothing. Needs no PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from scaling.core.config.plain_words import nearest


def name_in_layer(key: str) -> str:
    """Return a parameter's name without `layers.<index>.`."""
    return key.split(".", 2)[2] if key.startswith("layers.") else key


def takes_parameter(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether a pattern of `include` (all, if empty) and none of `exclude` is found in a name within a layer."""
    included = not include or any(re.search(pattern, name) for pattern in include)
    return included and not any(re.search(pattern, name) for pattern in exclude)


def unmatched_patterns(include: Iterable[str], names: Iterable[str]) -> Mapping[str, str]:
    """Return the patterns that are found in none of the `names` (those within layers), each with a message about it.

    A pattern whose matches are all taken by others counts as matched: it names parameters that exist.
    """
    known = sorted(set(names))
    return {
        pattern: f"{pattern!r} matches no parameter{_hint(pattern, known)}"
        for pattern in dict.fromkeys(include)
        if not any(re.search(pattern, name) for name in known)
    }


def _hint(pattern: str, names: Sequence[str]) -> str:
    """Suggest what was probably meant: the nearest one of all dotted parts of all names."""
    near = nearest(re.sub(r"[\\^$()*?]", "", pattern), dict.fromkeys(part for name in names for part in _parts(name)))
    return "" if near is None else f"; did you mean {near}?"


def _parts(name: str) -> Iterator[str]:
    words = name.split(".")
    for first in range(len(words)):
        for last in range(len(words), first, -1):
            yield ".".join(words[first:last])
