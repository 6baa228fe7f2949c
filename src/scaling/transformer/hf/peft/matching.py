"""The names of modules in PEFT's configurations: endings or regular expressions, within layers; both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")

ALL_LINEAR = "all-linear"


def is_named(names: str | Collection[str], module: str) -> bool:
    """Return whether `names` select a module: a regular expression for the whole name, or whole-word endings."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def is_target(settings: Mapping[str, Any], module: str, *, is_linear: bool) -> bool:
    """Return whether an adapter's configuration selects a module. `is_linear`: it is linear, and not the head."""
    targets, excluded, saved = (settings.get(key) for key in ("target_modules", "exclude_modules", "modules_to_save"))
    if excluded and is_named(excluded, module):
        return False
    if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in saved or ()):
        return False
    if isinstance(targets, str):
        return is_linear if targets.lower() == ALL_LINEAR else is_named(targets, module)
    if not targets or not is_named(targets, module):
        return False
    if module in targets:
        return True
    layers = settings.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    layer = _layer(settings.get("layers_pattern"), module)
    return layer is not None and layer in ([layers] if isinstance(layers, int) else layers)


def _layer(patterns: str | Sequence[str] | None, module: str) -> int | None:
    """Return the number of the layer that a module is in."""
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return None if found is None else int(found[1])
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.)(?:{pattern})\.(?P<number>\d+)\.", module)
        if found is not None:
            return int(found["number"])
    return None


def value_of(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """Return the value of the first pattern that fits the end of a module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def endings(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return endings that select the wanted modules and no other known one; the shortest endings, without numbers."""
    meant, names = frozenset(wanted), list(known)
    return list(dict.fromkeys(_ending(module, meant, names) for module in wanted))


def by_ending(values: Mapping[str, Value], default: Value) -> dict[str, Value]:
    """Return patterns that give each module its value, where it is not the default."""
    found: dict[str, Value] = {}
    names = list(values)
    for other in dict.fromkeys(value for value in values.values() if value != default):
        alike = frozenset(module for module, value in values.items() if value == other)
        found |= {_ending(module, alike, names): other for module in names if module in alike}
    return found


def raw_endings(wanted: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return endings as `endings` does, but valid where an ending may begin anywhere, as in `modules_to_save`."""
    meant, names = frozenset(wanted), list(known)

    def fits(ending: str) -> bool:
        return all(one in meant for one in names if one.endswith(ending))

    return list(dict.fromkeys(_shortest(module, fits) for module in wanted))


def _ending(module: str, wanted: frozenset[str], known: Sequence[str]) -> str:
    return _shortest(module, lambda ending: all(one in wanted for one in known if is_named([ending], one)))


def _shortest(module: str, fits: Callable[[str], bool]) -> str:
    """Return the shortest ending that fits; an ending with a number in it is replaced by the whole name."""
    words = module.split(".")
    for count in range(1, len(words)):
        if words[-count].isdigit():
            break
        if fits(ending := ".".join(words[-count:])):
            return ending
    return module
