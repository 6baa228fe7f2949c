"""How our configurations name modules: short names where all are meant, else exact patterns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, TypeVar

from scaling.core import LoRaModuleType
from scaling.transformer.hf.peft.modules import Modules, short_name

Value = TypeVar("Value")

_SHORT: Final = frozenset(kind.value for kind in LoRaModuleType)
_ALONE: Final = ("embedding", "head")
"""Names that several modules end with."""


def exactly(part: str) -> str:
    """Return the pattern of one module of ours."""
    return f"^{re.escape(part)}$"


def chosen(parts: Collection[str], modules: Modules) -> list[str]:
    """Return how `parallel_modules` name modules of ours."""
    named: dict[str, None] = {}
    for part in parts:
        short = short_name(part, modules)
        alike = [other.name for other in modules.parts() if short_name(other.name, modules) == short]
        named[short if set(alike) <= set(parts) else exactly(part)] = None
    return list(named)


def is_chosen(part: str, names: Collection[str], modules: Modules) -> bool:
    """Return whether a configuration of ours means a module: by its short name, or by a pattern found in its name."""
    short = short_name(part, modules)
    return any(name == short if name in _SHORT else re.search(name, part) is not None for name in names)


def patterns(values: Mapping[str, Value], default: Value, modules: Modules) -> dict[str, Value]:
    """Return patterns that give each of our modules its value, where it is not the default."""
    found: dict[str, Value] = {}
    for part, value in values.items():
        if value == default:
            continue
        short = short_name(part, modules)
        alike = [its for other, its in values.items() if short_name(other, modules) == short]
        common = short not in _ALONE and all(its == value for its in alike)
        found[rf"\.{short}$" if common else exactly(part)] = value
    return found
