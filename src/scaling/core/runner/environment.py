"""Environment: which variables the processes of a run get, and which of them must never be written down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from scaling.core.runner.cores import available_cores

NODE_VARIABLE: Final = "SCALING_NODE"
"""Set to `RUN_ID/INDEX` for everything that runs on a machine for a run, so that leftovers can be found."""

_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_DEEPSPEED_FILE: Final = ".deepspeed_env"


@dataclass(frozen=True, kw_only=True)
class Variables:
    """Variables to pass on, separated into those that may be seen and secrets."""

    plain: Mapping[str, str]
    secrets: Mapping[str, str]
    """Never in a file, a log or a command line."""


def is_secret(name: str) -> bool:
    """Return whether a variable of this name is to be kept secret."""
    return _SECRET.search(name) is not None


def forwarded(environ: Mapping[str, str], patterns: Sequence[str], *, home: Path | None = None) -> Variables:
    """Return what other machines get: variables that match a pattern, and those of ~/.deepspeed_env, which win.

    A pattern has * for any characters and ? for one. Lines of the file are NAME=VALUE; empty lines and those that begin
    with # are left out.
    """
    chosen = {name: value for name, value in environ.items() if any(fnmatchcase(name, one) for one in patterns)}
    chosen |= _deepspeed_lines((home or Path.home()) / _DEEPSPEED_FILE)
    return Variables(
        plain={name: value for name, value in sorted(chosen.items()) if not is_secret(name)},
        secrets={name: value for name, value in sorted(chosen.items()) if is_secret(name)},
    )


def process_defaults(environ: Mapping[str, str], processes: int, *, gpus: Sequence[int] | None) -> dict[str, str]:
    """Return default variables for the processes of one machine, except those that `environ` already sets."""
    defaults = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # warnings of gloo and the store are dozens of lines each
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the cores from those that work
    }
    if "PYTORCH_CUDA_ALLOC_CONF" not in environ:  # the former name
        # Expandable segments avoid fragmentation where blocks of changing size come and go. This affects only GPUs.
        defaults["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if gpus is not None:
        defaults["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    cores = available_cores()
    if processes > 1 or cores < (os.cpu_count() or 1):
        defaults["OMP_NUM_THREADS"] = str(max(1, cores // processes))
    return {name: value for name, value in defaults.items() if name not in environ}


def script_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that let a script import from the working directory of the command, as a module can."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), environ.get("PYTHONPATH")]))}


def _deepspeed_lines(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in map(str.strip, lines) if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs if re.fullmatch(r"\w+", name.strip())}
