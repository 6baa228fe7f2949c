"""The names of modules in our configurations: short names where all are meant, else exact patterns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, TypeVar

from scaling.core import LoRaModuleType
from scaling.transformer.hf.peft.modules import Modules

Value = TypeVar("Value")

_SHORT: Final = frozenset(kind.value for kind in LoRaModuleType)
_ALONE: Final = ("embedding", "head")
"""Names that several modules end with."""


def exactly(part: str) -> str:
    """Return the pattern of one module of ours."""
    return f"^{re.escape(part)}$"


def chosen(parts: Collection[str], modules: Modules) -> list[str]:
    """Return the entries of `parallel_modules` that select modules of ours."""
    partly = {short for part, short in modules.short.items() if part not in parts}
    return list(
        dict.fromkeys(exactly(part) if modules.short[part] in partly else modules.short[part] for part in parts)
    )


def is_chosen(part: str, names: Collection[str], modules: Modules) -> bool:
    """Return whether `names` of our configuration select a module: by short name, or by a pattern found in its name."""
    short = modules.short[part]
    return any(name == short if name in _SHORT else re.search(name, part) is not None for name in names)


def patterns(values: Mapping[str, Value], default: Value, modules: Modules) -> dict[str, Value]:
    """Return patterns that give each of our modules its value, where it is not the default."""
    by_short: dict[str, list[Value]] = {}
    for part, value in values.items():
        by_short.setdefault(modules.short[part], []).append(value)
    found: dict[str, Value] = {}
    for part, value in values.items():
        short = modules.short[part]
        if value != default:
            common = short not in _ALONE and all(other == value for other in by_short[short])
            found[rf"\.{short}$" if common else exactly(part)] = value
    return found
