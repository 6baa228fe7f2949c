"""Late imports by name, for objects that only some commands use."""

from __future__ import annotations

import importlib
from typing import Any


def imported(home: str) -> Any:
    """Return the object named `module:name`."""
    module, _, attribute = home.partition(":")
    return getattr(importlib.import_module(module), attribute)
