"""Reading: the values of a file of an earlier version, in the present form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling.core.errors import Problem


@dataclass(frozen=True)
class Reading:
    """Plain data in the form of the present version, not yet validated."""

    values: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()
    """Values that could not be brought into the present form, and are left out of `values`."""
    notes: tuple[Problem, ...] = ()
    """Remarks on the translation for the user."""
