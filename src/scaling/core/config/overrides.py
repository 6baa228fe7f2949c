"""Apply dotted overrides such as `topology.data_parallel_size=2` to plain data before it is validated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaling.core.config.yaml_text import parse_value
from scaling.core.errors import ConfigError, Problem


def apply_overrides(
    values: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    rename: Callable[[dict[str, Any], Sequence[str]], None] = lambda values, path: None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Return a changed deep copy of `values`, and the problems of the overrides themselves.

    A number in the path is the index of a list item; the index just after the last item appends one. Missing sections
    are created: validation checks later whether the keys exist. `rename(values, path)` may first give the keys along a
    path their present names. The value is YAML; an empty value is null.
    """
    result = copy.deepcopy(dict(values))
    problems = []
    rename(result, ())
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            problems.append(
                Problem("", f"{override!r} is not KEY=VALUE; write for example topology.data_parallel_size=2")
            )
            continue
        rename(result, path)
        try:
            _set(result, path, parse_value(text))
        except ConfigError as error:
            problems.append(Problem(key, f"cannot be set to {text!r}: {error}"))
    return result, problems


def _set(container: Any, path: Sequence[str], value: Any) -> None:
    """Set `value` at `path` below `container`, in place."""
    for depth, (part, following) in enumerate(zip(path, (*path[1:], None), strict=True)):
        where = ".".join(path[:depth]) or "the configuration"
        if isinstance(container, list):
            index = _index(part, len(container), where)
            if index == len(container):
                container.append(None)
            key: Any = index
        elif isinstance(container, dict):
            key = part
        else:
            raise ConfigError(f"{where} is {container!r}, neither a section nor a list")
        if following is None:
            container[key] = value
            return
        nested = container[key] if isinstance(container, list) else container.get(key)
        if nested is None:
            nested = container[key] = [] if following.isdecimal() else {}
        container = nested


def _index(part: str, length: int, where: str) -> int:
    if not part.isdecimal():
        raise ConfigError(f"{where} is a list; name an item by its number, counted from 0, not by {part!r}")
    if int(part) > length:
        raise ConfigError(f"{where} ends before that; {where}.{length} appends an item")
    return int(part)
