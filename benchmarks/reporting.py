"""What every benchmark tells: the command, the machine, the figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def parser(description: str | None, **counts: int) -> argparse.ArgumentParser:
    """Return what reads the command line: an option for each of these numbers, and `--json`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in counts.items():
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--json", type=Path)
    return made


def begin() -> dict[str, Any]:
    """Return a report that says what was run and where. Call it before options are changed."""
    machine: dict[str, Any] = {"cpu": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {"command": " ".join(["python3", *sys.argv]), "machine": machine}


def publish(report: dict[str, Any], path: Path | None) -> None:
    """Print a report as JSON, and write it to a file where one is named."""
    text = json.dumps(report, indent=2)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    print(text)
