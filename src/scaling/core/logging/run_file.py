"""The file run.json, written by the processes of a run and by the process that starts them. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scaling.core.storage.writing import write_json

RUN_FILE: Final = "run.json"
ATTEMPTS: Final = "attempts"


def write_attempts(log_dir: Path, attempts: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of all attempts of a command to `run.json`, in place of those of an earlier command."""
    write_json(log_dir / RUN_FILE, read_run_file(log_dir) | {ATTEMPTS: list(attempts)})


def read_run_file(log_dir: Path) -> dict[str, Any]:
    """Return the content of `run.json`; empty where the file is missing or malformed."""
    try:
        values = json.loads((log_dir / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
