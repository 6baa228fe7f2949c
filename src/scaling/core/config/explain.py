"""Translate pydantic's errors about a section into problems in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scaling.core.config.fields import NoEffect, Unavailable, marker
from scaling.core.config.plain_words import alternatives, bounds_of, nearest, one_of, refusal
from scaling.core.errors import Problem

PROBLEMS = "problems"
"""Type of the validation error that carries the problems of a whole sub-section."""


def explain(
    error: ValidationError,
    section: type[BaseModel],
    *,
    former_names: Mapping[str, str] = MappingProxyType({}),
    root: type[BaseModel] | None = None,
    kinds: Mapping[str, type[BaseModel]] = MappingProxyType({}),
) -> list[Problem]:
    """Return the problems of `section`, one for each place; paths are relative to the section.

    An unknown key is looked up in `root`, the configuration being loaded, and in `kinds`, the kinds that the section
    may be of.
    """
    lines = [(_place(line["loc"], section), line) for line in error.errors(include_url=False)]
    explained = {".".join(place) for place, line in lines if line["type"] == PROBLEMS}
    problems: list[Problem] = []
    for place, line in lines:
        path = ".".join(place)
        if line["type"] == PROBLEMS:
            found: Sequence[Problem] = line["ctx"][PROBLEMS]
            problems += [Problem(".".join(filter(None, (path, problem.path))), problem.message) for problem in found]
        elif path not in explained:
            explained.add(path)
            problems.append(Problem(path, _message(place, line, section, former_names, root, kinds)))
    return problems


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the section types in an annotation: of `A`, `A | None`, `list[A]`."""
    for arm in alternatives(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            yield arm
        for argument in get_args(arm):
            yield from sections_of(argument)


def _place(location: Sequence[int | str], section: type[BaseModel]) -> list[str]:
    """Return the field, indices of list items and keys of mappings; further parts of `location` name union members.

    A key is returned only where the field's type is a mapping, not a union: then the part after the field is a key.
    """
    field = section.model_fields.get(str(location[0])) if location else None
    keyed = field is not None and get_origin(field.annotation) is dict
    first, rest = location[: 1 + keyed], location[1 + keyed :]
    return [str(part) for part in (*first, *takewhile(lambda part: isinstance(part, int), rest))]


def _message(
    place: Sequence[str],
    line: ErrorDetails,
    section: type[BaseModel],
    former_names: Mapping[str, str],
    root: type[BaseModel] | None,
    kinds: Mapping[str, type[BaseModel]],
) -> str:
    if line["type"] in ("value_error", "assertion_error"):
        return str(line["ctx"]["error"]) or line["msg"]
    name, *indices = place
    if name not in section.model_fields:
        if having := [kind for kind, member in kinds.items() if name in member.model_fields]:
            return f"unknown key for this kind; it belongs to {one_of(having).removeprefix('one of ')}"
        return _unknown(name, list(section.model_fields), former_names, root or section)
    field = section.model_fields[name]
    if line["type"] == "missing":
        return f"is required. {field.description}"
    annotation: Any = field.annotation
    bounds: Sequence[Any] = field.metadata
    which = 0 if line["loc"][-1] == "[key]" else -1
    for _ in indices:
        annotation = next((get_args(arm)[which] for arm in alternatives(annotation) if get_args(arm)), annotation)
        bounds = bounds_of(annotation)
    return refusal(annotation, bounds, line["input"])


def _unknown(name: str, known: Sequence[str], former_names: Mapping[str, str], root: type[BaseModel]) -> str:
    """Return what an unknown key probably is: a key of another section, or a misspelt key of this one."""
    if places := sorted(_places(name, root), key=len):
        return f"unknown key here; it belongs in {places[0]}"
    first, _, rest = name.partition(".")
    if rest and first in known:
        return f"unknown key; write {rest} below {first}, on a line of its own"
    key = "unknown key" if re.fullmatch(r"[\w-]+", name, re.ASCII) else f"unknown key {name!a}"
    if near := nearest(name, [*known, *former_names]):
        return f"{key}; did you mean {former_names.get(near, near)}?"
    if len(known) <= 12:
        return f"{key}; this section has {', '.join(known)}"
    return f"{key}, and none is like it; remove it"


def _places(name: str, section: type[BaseModel]) -> Iterator[str]:
    """Yield the dotted paths of sections below `section` that have a field `name`."""
    for key, field in section.model_fields.items():
        if not marker(field, NoEffect) and not marker(field, Unavailable):
            for inner in sections_of(field.annotation):
                for member in (inner, *inner.__subclasses__()):  # the members of a family
                    if name in member.model_fields:
                        yield key
                    yield from (f"{key}.{place}" for place in _places(name, member))
