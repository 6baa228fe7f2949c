"""Read the architecture of a language model from its checkpoint, and the tokenizer beside the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.core import CheckpointError, StoredCheckpoint
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer, tokenizer_digest


def architecture_of(stored: StoredCheckpoint) -> tuple[TransformerArchitectureConfig, dict[str, Any]]:
    """Return the architecture and all settings of a checkpoint; `CheckpointError` if it is not of a language model."""
    settings: Any = stored.manifest.scalars.get("config")
    match settings:
        case {"transformer_architecture": dict(section)}:
            return TransformerArchitectureConfig.from_dict({**section, "vocab_file": None}), settings
    raise CheckpointError(
        f"{stored.path} has no transformer_architecture in its configuration, so it is not a language model's "
        "checkpoint; name another folder"
    )


def tokenizer_file_beside(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """Return the tokenizer file beside a step folder, None where there is none; refuse the tokenizer of another run."""
    path = folder.absolute().parent / TOKENIZER_FILE
    if not path.exists():
        return None
    digest = tokenizer_digest(path)
    # The checkpoint of a training without a tokenizer has no digest to compare with.
    known = settings.get("fingerprints", {}).get("tokenizer", digest)
    if digest != known:
        raise CheckpointError(
            f"{path} is not the tokenizer that {folder} was trained with: its digest is {digest}, the "
            f"checkpoint's {known}. Put the tokenizer of the training there (its transformer_architecture.vocab_file)"
        )
    return path


def tokenizer_beside(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer beside a step folder, None where there is none; refuse the tokenizer of another run."""
    path = tokenizer_file_beside(folder, settings)
    return None if path is None else Tokenizer.from_file(path)
