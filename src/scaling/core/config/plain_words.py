"""Describe in plain words what a field expects, and check whether a value is of that kind."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scaling.core.config.patterns import NAME_PATTERN

_LARGEST: Final[Mapping[type, float]] = {int: 2**63 - 1, float: sys.float_info.max}
"""Whole numbers have 64 bits, as in files and tensors; other numbers are finite."""

_PATTERNS: Final = {NAME_PATTERN: "of letters, digits, _ and -"}
"""Descriptions of known patterns for text."""


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type itself, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(arm for member in get_args(annotation) for arm in alternatives(member))
    return (annotation,)


def _items(annotation: Any) -> list[Any]:
    """Return the item type of each list type that a field accepts."""
    return [get_args(arm)[0] for arm in alternatives(annotation) if get_origin(arm) is list]


def bounds_of(annotation: Any) -> list[Any]:
    """Return the bounds in an annotation, such as that of a list's items: `Annotated[float, Field(gt=0)]`."""
    if get_origin(annotation) is not Annotated:
        return []
    extras = get_args(annotation)[1:]
    return [bound for extra in extras for bound in (extra.metadata if isinstance(extra, FieldInfo) else (extra,))]


def fits(annotation: Any, value: Any) -> bool:
    """Return whether `value` is of the kind that `annotation` asks for.

    The check is stricter than pydantic's: text is not a number, a number is not a boolean, and a boolean is not a
    number. A number without a fraction is a whole number however it is written (`1e3`).
    """
    return any(_fits_one(arm, value) for arm in alternatives(annotation))


def _fits_one(kind: Any, value: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(fits(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(arguments[1], item) for item in value.values())
    if not isinstance(kind, type):
        return True
    if issubclass(kind, BaseModel):
        return isinstance(value, (Mapping, kind))
    if issubclass(kind, Enum):
        return isinstance(value, kind) or (isinstance(value, str) and value in [member.value for member in kind])
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST[kind]:
            return False
        return kind is float or value == int(value)
    if kind is Path:
        is_text = isinstance(value, (str, Path)) and str(value) != "" and "\0" not in str(value)
        return is_text and not with_home(kind, value).startswith("~")
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    return True


def with_home(annotation: Any, value: Any) -> Any:
    """Return `value` with a leading ~ expanded in each path, as a shell does."""
    arms = alternatives(annotation)
    if Path in arms and isinstance(value, (str, Path)):
        return os.path.expanduser(Path(value))
    items = _items(annotation)
    if items and isinstance(value, (list, tuple)):
        return [with_home(items[0], item) for item in value]
    return value


def expected(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """Describe the values a field accepts: `a whole number of at least 1, or null`."""
    arms = alternatives(annotation)
    words = [_expected_one(arm, list(bounds)) for arm in arms if arm is not NoneType]
    return " or ".join(words) + (", or null" if NoneType in arms else "")


def _expected_one(kind: Any, bounds: Sequence[Any]) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return one_of([str(option) for option in arguments])
    if origin is list:
        return f"a list{_bounds(bounds)}, each item {expected(arguments[0], bounds_of(arguments[0]))}"
    if origin is dict:
        return f"a mapping from text to {expected(arguments[1])}"
    if isinstance(kind, type):
        if issubclass(kind, BaseModel):
            return "a section (KEY: VALUE lines)"
        if issubclass(kind, Enum):
            return one_of([str(member.value) for member in kind])
        if kind in (int, float):
            return ("a whole number" if kind is int else "a number") + _bounds(bounds)
        if kind is str:
            return "text" + _bounds(bounds)
    return {bool: "true or false", Path: "a path"}.get(kind, "a value")


def _bounds(bounds: Sequence[Any]) -> str:
    words = []
    for bound in bounds:
        match bound:
            case object(ge=limit):
                words.append(f"of at least {limit}")
            case object(gt=limit):
                words.append(f"greater than {limit}")
            case object(le=limit):
                words.append(f"of at most {limit}")
            case object(lt=limit):
                words.append(f"less than {limit}")
            case object(min_length=1):
                words.append("that is not empty")
            case object(pattern=str(pattern)):
                words.append(_PATTERNS.get(pattern, f"that matches {pattern}"))
    return f" {' and '.join(words)}" if words else ""


def one_of(options: Sequence[str]) -> str:
    """Join options: `one of a, b or c`."""
    return options[0] if len(options) == 1 else f"one of {', '.join(options[:-1])} or {options[-1]}"


def first_of(names: Sequence[str], limit: int, *, what: str = "") -> str:
    """Name the first of many: `a, b and 3 more`; with their kind as `what`: `a, b and 3 more tensors`."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more {what}".rstrip() if more > 0 else "")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` most probably means; None where no word is similar."""
    candidates = list(known)
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def shown(value: Any) -> str:
    """Return a value as text that the user recognises, on one short line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return shown(value.value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, BaseModel | Mapping):
        return "a section"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(item) for item in value[:8])}{', ...' if len(value) > 8 else ''}]"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def misfits(annotation: Any, bounds: Iterable[Any], value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, message) for every value at or below `path` that is of a wrong kind."""
    items = _items(annotation)
    of_keys = [get_args(arm)[1] for arm in alternatives(annotation) if get_origin(arm) is dict]
    if isinstance(value, (list, tuple)) and items:
        for index, item in enumerate(value):
            yield from misfits(items[0], bounds_of(items[0]), item, f"{path}.{index}")
    elif isinstance(value, Mapping) and of_keys:
        for key, item in value.items():
            yield from misfits(of_keys[0], bounds_of(of_keys[0]), item, f"{path}.{key}")
    elif not fits(annotation, value):
        yield path, refusal(annotation, bounds, value)


def refusal(annotation: Any, bounds: Iterable[Any], value: Any) -> str:
    """Return a message about what a field expects and what it got instead."""
    hint = ""
    arms = [arm for arm in alternatives(annotation) if isinstance(arm, type)]
    options = [str(member.value) for arm in arms if issubclass(arm, Enum) for member in arm]
    near = nearest(value, options) if isinstance(value, str) else None
    if near and near[0].lower() == value[0].lower():  # gpu is not a misspelt cpu
        hint = f"; did you mean {near}?"
    elif isinstance(value, (str, int, float)) and any(fits(item, value) for item in _items(annotation)):
        hint = f"; put it in brackets: [{value}]"
    elif Path in arms and isinstance(value, (str, Path)) and str(value).startswith("~"):
        hint = "; there is no such home folder"
    elif str in arms and isinstance(value, (bool, int, float)):
        hint = "; put it in quotes"
    elif isinstance(value, (int, float)) and value < math.inf:
        largest = max((_LARGEST[arm] for arm in arms if arm in _LARGEST), default=value)
        hint = f"; the largest possible is {largest}" if value > largest else ""
    return f"must be {expected(annotation, bounds)}, not {shown(value)}{hint}"
