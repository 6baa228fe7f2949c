"""The virtual environment of each peer, made with pip on first use.

All have the PyTorch of this interpreter, installed first, so that what a peer asks for does not replace it, and so that
the libraries are compared rather than the versions of PyTorch below them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

DEFAULT_FOLDER = Path("~/.cache/scaling-benchmarks")
COMPLETE = "complete.json"
"""Written last into an environment: the commands that made it."""


@dataclass(frozen=True)
class Environment:
    """What a peer needs beside PyTorch."""

    peer: str
    """The pinned requirement."""
    needs: tuple[str, ...] | None = None
    """What it needs on a CPU, where that is less than what it asks for. None: all that it asks for."""
    variables: dict[str, str] = field(default_factory=dict)
    """Of the environment of pip."""

    @property
    def name(self) -> str:
        return self.peer.split("==")[0]

    def commands(self) -> list[list[str]]:
        """Return the arguments of pip, call by call."""
        pytorch = "torch==" + torch.__version__.split("+")[0]
        if self.needs is None:
            return [[pytorch, "numpy"], [pytorch, self.peer, *self.beside]]
        # Built without isolation: a peer's build may import torch, and would fetch another one.
        return [[pytorch, "numpy"], [pytorch, *self.needs], ["--no-deps", "--no-build-isolation", self.peer]]

    beside: tuple[str, ...] = ()
    """Pinned requirements of its own that are installed with it."""


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("transformers==5.24.0", beside=("accelerate==1.15.0",)),
        Environment("litgpt==0.5.13"),
        Environment("torchtitan==0.3.0"),
        Environment("ai2-olmo-core==3.0.0"),
        Environment(
            "deepspeed==0.19.8",
            needs=("setuptools", "wheel", "einops", "hjson", "msgpack", "ninja", "packaging", "psutil", "py-cpuinfo",
                   "pydantic", "tqdm"),
            variables={"DS_BUILD_OPS": "0"},
        ),
        Environment("megatron-core==0.16.1", needs=("setuptools", "wheel", "packaging", "einops")),
    )
}  # fmt: skip


class NotInstalled(Exception):
    """An environment could not be made."""


def interpreter(name: str, folder: Path) -> str:
    """Return the interpreter of a peer's environment, which is made first where it is not complete or has changed."""
    environment = ENVIRONMENTS[name]
    root = folder.expanduser() / name
    python = root / "bin" / "python"
    made = json.dumps(environment.commands())
    if not (root / COMPLETE).exists() or (root / COMPLETE).read_text() != made:
        shutil.rmtree(root, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(root)])
        for arguments in environment.commands():
            _call([str(python), "-m", "pip", "install", "--quiet", *arguments], environment.variables)
        (root / COMPLETE).write_text(made)
    return str(python)


def _call(command: list[str], variables: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=os.environ | (variables or {}), capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise NotInstalled(f"{' '.join(command)} failed: {' '.join(lines[-3:])}")
