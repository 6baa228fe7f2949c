"""Parse a raw record: a missing field, or one of another kind, is refused with the name of what is there instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SHOWN = 8


class Refusal(Exception):
    """Why a record cannot be used. Its place is added where records are read."""


def kind(value: object) -> str:
    """Return the kind of a JSON value, for a message."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def names(values: Sequence[str]) -> str:
    """Return a list of some names, for a message."""
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return (", ".join(map(repr, values[:_SHOWN])) or "none") + more


def an_object(value: Any, what: str) -> Mapping[str, Any]:
    """Return a value that has to be an object.

    Raises:
        Refusal: The value is no object.
    """
    if not isinstance(value, dict):
        raise Refusal(f"{what} is {kind(value)}, not an object")
    return value


def a_list(value: Any, what: str) -> list[Any]:
    """Return a value that has to be a list with elements.

    Raises:
        Refusal: The value is no list, or an empty one.
    """
    if not isinstance(value, list):
        raise Refusal(f"{what} is {kind(value)}, not a list")
    if not value:
        raise Refusal(f"{what} is empty")
    return value


def a_text(value: Any, what: str) -> str:
    """Return a value that has to be a text.

    Raises:
        Refusal: The value is no text.
    """
    if not isinstance(value, str):
        raise Refusal(f"{what} is {kind(value)}, not text")
    return value


def field(record: Mapping[str, Any], name: str, *, of: str = "the record") -> Any:
    """Return a field that a record must have.

    Raises:
        Refusal: The field is missing.
    """
    if name not in record:
        near = difflib.get_close_matches(name, list(record), n=1)
        hint = f"; is {near[0]!r} meant for it?" if near else ""
        raise Refusal(f"{of} has no field {name!r}; its fields are {names(list(record))}{hint}")
    return record[name]


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text within a JSON value, the names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def require_characters(value: Any) -> None:
    """Refuse a JSON value with texts that are not valid.

    Raises:
        Refusal: There is a NUL, or half a surrogate pair.
    """
    for text in texts_in(value):
        if text.isascii() and "\0" not in text:
            continue
        if "\0" in text:
            raise Refusal("a NUL character, which text does not contain")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Refusal(f"half a surrogate pair at character {error.start}, which is no character") from error
