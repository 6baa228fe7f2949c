"""The line about a step: metrics become named fields, and these a line of a terminal's width or `name value` pairs.

Everything here is pure. The names of the fields are the words that people search logs for, so they must not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

SEPARATOR: Final = "  "
"""Between two fields on a terminal."""

LEARNING_RATE: Final = "training/learning_rate_"


@dataclass(frozen=True)
class LineField:
    """One number about a step."""

    name: str
    """The name of the field in plain lines."""
    value: str
    """The value that follows the name there: no spaces, no thousands separators, base units."""
    shown: str
    """The field on a terminal, with a name or a unit for people."""
    priority: int
    """0 is the most important; the field with the highest number is left out first."""


def step_fields(
    step: int, total_steps: int, metrics: Mapping[str, float], *, seconds_left: float | None = None
) -> list[LineField]:
    """Return the fields of a step for which there are metrics, in the order in which they are shown."""
    fields = [LineField("step", f"{step}/{total_steps}", f"step {step}/{total_steps}", 0)]

    def add(name: str, value: str, shown: str, priority: int) -> None:
        fields.append(LineField(name, value, shown, priority))

    if (loss := metrics.get("training/loss")) is not None:
        add("loss", f"{loss:.4f}", f"loss {loss:.4f}", 1)
    if (norm := metrics.get("training/global_grad_norm")) is not None:
        add("grad_norm", f"{norm:.4g}", f"grad norm {norm:.3g}", 4)
    rates = [value for name, value in metrics.items() if name.startswith(LEARNING_RATE)]
    if rates:  # of several groups, the highest
        add("lr", f"{max(rates):.4g}", f"lr {max(rates):.2e}", 5)
    for unit in ("tokens", "samples"):
        if (speed := metrics.get(f"training/{unit}_per_second")) is not None:
            add(f"{unit}_per_second", plain_number(speed), f"{with_thousands(speed)} {unit}/s", 2)
    if (mfu := metrics.get("training/mfu")) is not None:
        add("mfu", f"{mfu:.4f}", f"mfu {100 * mfu:.1f} %", 6)
    if (memory := metrics.get("training/peak_memory_bytes")) is not None:
        add("memory_gib", f"{memory / 2**30:.2f}", f"{memory / 2**30:.1f} GiB", 7)
    if (wait := metrics.get("training/data_wait_fraction")) is not None:
        add("data_wait", f"{wait:.3f}", f"data wait {100 * wait:.0f} %", 8)
    if seconds_left is not None:
        left = clock_time(seconds_left)
        add("time_left", left, f"{left} left", 3)
    return fields


def fitted(fields: Sequence[LineField], width: int) -> str:
    """Return as many fields as `width` columns hold, in their order; the least important are left out first.

    The most important field is cut where even that is too wide.
    """
    kept = list(fields)
    while len(kept) > 1 and len(_joined(kept)) > width:
        kept.remove(max(kept, key=lambda field: field.priority))
    return _joined(kept)[: max(width, 0)]


def plain(fields: Sequence[LineField]) -> str:
    """Return all fields as `name value` pairs, for files and for grep."""
    return " ".join(f"{field.name} {field.value}" for field in fields)


def _joined(fields: Sequence[LineField]) -> str:
    return SEPARATOR.join(field.shown for field in fields)


def plain_number(value: float) -> str:
    """Return a number without separators and, unless it is tiny or huge, without an exponent."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e18 else f"{value:.5g}"


def with_thousands(value: float) -> str:
    """Return a number with thousands separators, for people."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def clock_time(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, without spaces."""
    days, rest = divmod(round(seconds), 86400)
    return f"{days}d{timedelta(seconds=rest)}" if days else str(timedelta(seconds=rest))
