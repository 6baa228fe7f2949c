"""The file run.json, which a run's processes write, and the one that starts them, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scaling.core.storage.writing import write_json

RUN_FILE: Final = "run.json"
ATTEMPTS: Final = "attempts"


def write_attempts(log_dir: Path, attempts: Sequence[Mapping[str, Any]]) -> None:
    """Write what became of all attempts of a command to `run.json`, in place of those of a command before."""
    write_json(log_dir / RUN_FILE, read_run_file(log_dir) | {ATTEMPTS: list(attempts)})


def read_run_file(log_dir: Path) -> dict[str, Any]:
    """Return what `run.json` says; nothing where there is none or it cannot be understood."""
    try:
        values = json.loads((log_dir / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
