"""Numbers as people read them, and the ticks of an axis."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final

_THOUSANDS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_STEPS: Final = (1.0, 2.0, 5.0, 10.0)


def short(value: float, *, unit_from: float = 1e4) -> str:
    """Return a number in four digits: 0.003, 6.035, 5,683, 15k. From `unit_from` (at least 1,000) on, with a unit."""
    size = abs(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= unit_from:
        unit, letter = next(pair for pair in _THOUSANDS if size >= pair[0])
        return f"{value / unit:.4g}{letter}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes} min {rest} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def between(start: object, end: object) -> float | None:
    """Return the seconds between two times as files have them; None where either is not a time."""
    try:
        return (datetime.fromisoformat(str(end)) - datetime.fromisoformat(str(start))).total_seconds()
    except (ValueError, TypeError):
        return None


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Return about `count` round numbers from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / count
    unit: float = 10.0 ** math.floor(math.log10(rough))
    step = unit * next((factor for factor in _STEPS if unit * factor >= rough), _STEPS[-1])
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float, *, count: int = 6) -> list[float]:
    """Return powers of ten from `low` to `high`, or round numbers where fewer than two powers are in the range."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 1:
        return ticks(low, high)
    stride = -(-(last - first + 1) // count)
    return [10.0**power for power in range(first, last + 1, stride)]
