"""Check lists of regular expressions in a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from scaling.core.errors import Problem

NAME_PATTERN: Final = r"^[A-Za-z0-9_-]+$"
"""Characters allowed between the dots of a parameter's name: letters, digits, _ and -."""


def pattern_problems(name: str, patterns: Iterable[str]) -> Iterator[Problem]:
    """Yield a problem for each pattern in the list `name` that is not a regular expression."""
    for index, pattern in enumerate(patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            yield Problem(f"{name}.{index}", f"is {pattern!r}, which is not a regular expression: {error}")
