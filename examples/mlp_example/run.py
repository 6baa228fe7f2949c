"""Start a training: python3 -m examples.mlp_example.run CONFIG [KEY=VALUE ...]."""

from __future__ import annotations

from examples.mlp_example.config import MLPConfig
from scaling.core import run_in_processes

if __name__ == "__main__":
    run_in_processes(MLPConfig, "examples.mlp_example.train")
