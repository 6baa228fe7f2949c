"""What a checkpoint says of the language model that it holds: its architecture, and the tokenizer beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.core import CheckpointError, StoredCheckpoint
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer, tokenizer_digest


def architecture_of(stored: StoredCheckpoint) -> tuple[TransformerArchitectureConfig, dict[str, Any]]:
    """Return the architecture, and all settings that the checkpoint has; `CheckpointError` where it is of no model."""
    settings: Any = stored.manifest.scalars.get("config")
    match settings:
        case {"transformer_architecture": dict(section)}:
            return TransformerArchitectureConfig.from_dict({**section, "vocab_file": None}), settings
    raise CheckpointError(
        f"{stored.path} has no transformer_architecture in its configuration, so it is not a language model's "
        "checkpoint; name another folder"
    )


def tokenizer_file_beside(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """Return the file of the tokenizer beside a step folder, None where there is none; refuse another run's."""
    path = folder.absolute().parent / TOKENIZER_FILE
    if not path.exists():
        return None
    digest = tokenizer_digest(path)
    # A training without a tokenizer does not name one.
    known = settings.get("fingerprints", {}).get("tokenizer", digest)
    if digest != known:
        raise CheckpointError(
            f"{path} is not the tokenizer that {folder} was trained with: its digest is {digest}, the "
            f"checkpoint's {known}. Put the tokenizer of the training there (its transformer_architecture.vocab_file)"
        )
    return path


def tokenizer_beside(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer that lies beside a step folder, None where there is none; refuse another run's."""
    path = tokenizer_file_beside(folder, settings)
    return None if path is None else Tokenizer.from_file(path)
