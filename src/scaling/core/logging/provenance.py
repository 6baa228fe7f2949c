"""run.json and config.yml: what ran, from which code, on what, so that a result can be traced and repeated."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from scaling.core.config.base import BaseConfig
from scaling.core.errors import StorageError
from scaling.core.logging.run_file import ATTEMPTS, RUN_FILE, read_run_file
from scaling.core.storage.writing import write_json

CONFIG_FILE = "config.yml"
_PACKAGES = ("scaling", "torch", "numpy", "safetensors", "tokenizers", "pydantic")
_GIT_SECONDS = 10
"""How long one git command may delay the start of a run."""


def write_run_files(
    log_dir: Path | None,
    config: BaseConfig,
    *,
    layout: Mapping[str, int],
    data_fingerprint: str | None,
    rank: int = 0,
    attempt: int = 0,
) -> None:
    """Write `run.json` and the resolved `config.yml` to `log_dir`; only on rank 0, and only if there is a `log_dir`.

    Where the runner has restarted the run (`attempt` is not 0), the records of earlier attempts are kept.
    """
    if log_dir is None or rank != 0:
        return
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        config.save(log_dir / CONFIG_FILE)
        description = describe_run(layout=layout, data_fingerprint=data_fingerprint)
        former = read_run_file(log_dir).get(ATTEMPTS) if attempt else None
        attempts = {} if former is None else {ATTEMPTS: former}
        write_json(log_dir / RUN_FILE, description | {"config_digest": config.digest()} | attempts)
    except OSError as error:
        raise StorageError(f"{log_dir} cannot be written ({error}); set logger.log_dir to another folder") from error


def describe_run(*, layout: Mapping[str, int], data_fingerprint: str | None) -> dict[str, Any]:
    """Return versions, git state, hardware, layout and data of this run, but not its environment or command line."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
            "cuda": torch.version.cuda,
        },
        "git": git_state(Path.cwd()),
        "hardware": {
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": _memory_bytes(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "layout": dict(layout),
        "data_fingerprint": data_fingerprint,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and changed files of the repository around `folder`; None outside one or without git.

    A value that git does not find in time, as in a large repository on a slow disk, is None too.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain")
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed_files": None if changes is None else len(changes.splitlines()),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    if sys.platform == "linux":
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
