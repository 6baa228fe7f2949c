"""Start a training: python3 -m examples.tutorials.characters.run CONFIG [KEY=VALUE ...]."""

from __future__ import annotations

from examples.tutorials.characters.train import CharactersConfig
from scaling.core import run_in_processes

if __name__ == "__main__":
    run_in_processes(CharactersConfig, "examples.tutorials.characters.train")
