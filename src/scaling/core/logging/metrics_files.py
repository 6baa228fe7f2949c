"""The names of metrics files: that of the run, and those that keep the metrics of its earlier starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

METRICS_FILE: Final = "metrics.jsonl"
"""In `logger.log_dir`, a line for each step."""

_NAMES: Final = re.compile(r"metrics(\.repeated|\.previous(\.[0-9]+)?)?\.jsonl", re.IGNORECASE)


def repeated_file(path: Path) -> Path:
    """Return the file, beside the metrics at `path`, for the steps that are repeated after a resume."""
    return path.with_name(f"{path.stem}.repeated{path.suffix}")


def previous_file(path: Path, number: int) -> Path:
    """Return the file for the metrics of an earlier start; `number` counts from 1."""
    return path.with_name(f"{path.stem}.previous{f'.{number}' if number > 1 else ''}{path.suffix}")


def names_metrics(path: Path) -> bool:
    """Return whether a file has a name under which a run keeps metrics."""
    return _NAMES.fullmatch(path.name) is not None
