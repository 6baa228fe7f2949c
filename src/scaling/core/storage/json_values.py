"""The type of JSON values, and checks of values read from JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def is_count(value: Any) -> bool:
    """Return whether a value that was read is a count: a whole number from 0, and small enough to add."""
    return type(value) is int and 0 <= value < 2**62


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object and refuse a key that appears twice (for `json.loads`)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return found
