"""The names of the files that metrics are in: the one of the run, and those of what its earlier starts have left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

METRICS_FILE: Final = "metrics.jsonl"
"""In `logger.log_dir`, a line for each step."""

_NAMES: Final = re.compile(r"metrics(\.repeated|\.previous(\.[0-9]+)?)?\.jsonl", re.IGNORECASE)


def repeated_file(path: Path) -> Path:
    """Return where steps are kept that come again, beside the metrics at `path`."""
    return path.with_name(f"{path.stem}.repeated{path.suffix}")


def previous_file(path: Path, number: int) -> Path:
    """Return where the metrics of an earlier start are kept, the first of them being number 1."""
    return path.with_name(f"{path.stem}.previous{f'.{number}' if number > 1 else ''}{path.suffix}")


def names_metrics(path: Path) -> bool:
    """Tell whether a file has a name under which a run keeps metrics."""
    return _NAMES.fullmatch(path.name) is not None
