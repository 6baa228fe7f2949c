"""Import what only some commands use when they use it, by its name."""

from __future__ import annotations

import importlib
from typing import Any


def imported(home: str) -> Any:
    """Return the object called `module:name`."""
    module, _, attribute = home.partition(":")
    return getattr(importlib.import_module(module), attribute)
