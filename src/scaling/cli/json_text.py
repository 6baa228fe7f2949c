"""JSON that every program can read: infinity and NaN, which JSON does not have, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence


def json_text(value: object, *, ascii_only: bool = True, indent: int | None = None) -> str:
    """Return a value as JSON. Python would write NaN and Infinity, which other readers refuse."""
    return json.dumps(_finite(value), ensure_ascii=ascii_only, indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(one) for one in value]
    return value
