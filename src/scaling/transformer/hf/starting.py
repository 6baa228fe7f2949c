"""The configuration that an import writes: the model unchanged, and a training that starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from scaling.core import ConfigError, storage_errors, write_atomically
from scaling.transformer.data.tokenizer import TOKENIZER_FILE

STARTING_CONFIG: Final = "config.yml"
FIRST_LINE: Final = "# Written by `scaling hf import`."
"""Marks a file that a later import may replace."""

ITERATIONS: Final = 1000
SAVE_INTERVAL: Final = 250
WARMUP_STEPS: Final = 50
LEARNING_RATE: Final = 1e-5
"""A usual value for training all weights of a trained model further."""
LEARNING_RATE_MINIMUM: Final = 1e-6
GRADIENT_ACCUMULATION_STEPS: Final = 8


def require_place_for_config(target: Path) -> None:
    """Refuse a folder with a configuration that was not written by an import."""
    path = target / STARTING_CONFIG
    with storage_errors(f"reading {path}"):
        if path.exists() and not path.read_text(errors="replace").startswith(FIRST_LINE):
            raise ConfigError(f"{path} exists already and is not of an import; name another folder")


def write_starting_config(
    section: Mapping[str, Any], target: Path, *, end_token_id: int | None, has_tokenizer: bool
) -> Path:
    """Write the configuration of a training that starts from the checkpoint in `target`; only the data are missing.

    `section` is the model's `transformer_architecture`.
    """
    place = target.absolute()
    path = target / STARTING_CONFIG
    tokenizer = place / TOKENIZER_FILE if has_tokenizer else "TOKENIZER"
    architecture = {**section, "vocab_file": str(tokenizer)} if has_tokenizer else dict(section)
    training = {
        "trainer": {
            "load_dir": str(place),
            "load_optimizer_states": False,
            "load_context": False,
            "assert_checkpoint_loaded": True,
            "save_dir": str(place / "trained" / "checkpoints"),
            "train_iterations": ITERATIONS,
            "save_interval": SAVE_INTERVAL,
        },
        "logger": {"log_dir": str(place / "trained")},
        "topology": {"micro_batch_size": 1, "gradient_accumulation_steps": GRADIENT_ACCUMULATION_STEPS},
        "learning_rate_scheduler": {
            "learning_rate": LEARNING_RATE,
            "learning_rate_minimum": LEARNING_RATE_MINIMUM,
            "learning_rate_decay_style": "cosine",
            "learning_rate_decay_iters": ITERATIONS,
            "learning_rate_warmup_steps": WARMUP_STEPS,
        },
        "transformer_architecture": architecture,
    }
    text = f"""{FIRST_LINE} It trains the imported model further. Name your data, then
#     scaling train {place / STARTING_CONFIG}
# Data are made of text by
#     scaling data tokenize texts.jsonl --output data/texts --tokenizer {tokenizer}

data:
  # Token data sets, without .bin and .idx, such as [data/texts].
  data_prefixes: null
  # Ends a document, as the model's own configuration says.
  {yaml.safe_dump({"eod_token_id": end_token_id}).strip()}

{yaml.safe_dump(training, sort_keys=False, allow_unicode=True, width=110)}"""
    with storage_errors(f"writing {path}"):
        write_atomically(path, text.encode())
    return path
