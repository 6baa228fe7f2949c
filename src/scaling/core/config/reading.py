"""Reading: what a file of an earlier version says, in the present form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling.core.errors import Problem


@dataclass(frozen=True)
class Reading:
    """Plain data as the present version has them, not yet validated."""

    values: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()
    """What could not be brought into the present form; `values` has none of it."""
    notes: tuple[Problem, ...] = ()
    """What a person should know of the translation."""
