"""Parts of a checkpoint for inference: architecture, weights, perhaps an adapter, tokenizer, generation defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from scaling.core import ConfigError, StoredCheckpoint, folder_meant, is_on_base
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.choices import Precision
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.finetuning.stored import StoredAdapter
from scaling.transformer.inference.generation.defaults import GenerationDefaults, read_defaults
from scaling.transformer.stored_model import architecture_of, tokenizer_beside

_BASE_REMEDY = (
    "name the folder that the base is in now: from_checkpoint(path, base=...), or open the base and load this"
)


@final
@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint that has been read except for its tensors."""

    architecture: TransformerArchitectureConfig
    whole: StoredCheckpoint | None
    """The checkpoint with the weights of the model or of the base. None: the adapter was trained on random weights."""
    adapter: StoredAdapter | None
    tokenizer: Tokenizer | None
    eod_token_id: int | None
    """The token that ends the documents that the model was trained on."""
    defaults: GenerationDefaults


def open_model(
    stored: StoredCheckpoint, *, base: Path | None, precision: str | None, sequence_length: int | None
) -> OpenedModel:
    """Open a checkpoint and its base, which is found in its former place or at `base`.

    `CheckpointError` where it is not a model's, the base is missing or another one, or the tokenizer is not the run's.
    """
    architecture, settings = architecture_of(stored)
    adapter = StoredAdapter.of(stored) if is_on_base(stored.manifest) else None
    if base is not None and adapter is None:
        raise ConfigError(f"base ({base}) is given, but {stored.path} holds a whole model, which needs none")
    whole: StoredCheckpoint | None = stored
    if adapter is not None:
        elsewhere = None if base is None else folder_meant(base)
        architecture, whole = adapter.base_architecture, adapter.find_base(elsewhere, remedy=_BASE_REMEDY)
    # With one scale for a whole operand, the rounding of a text would depend on the texts beside it.
    architecture = architecture.without_float8()
    if precision is not None:
        architecture = architecture.at_precision(precision)
    if sequence_length is not None:
        architecture = architecture.at_length(sequence_length)
    beside = list(dict.fromkeys(found.path.absolute() for found in (stored, whole) if found is not None))
    return OpenedModel(
        architecture=architecture,
        whole=whole,
        adapter=adapter,
        tokenizer=_tokenizer(beside, settings),
        eod_token_id=settings.get("data", {}).get("eod_token_id"),
        defaults=_defaults([folder.parent for folder in beside]),
    )


def require_precision(precision: str | None) -> None:
    """Raise a `ConfigError` for a precision that does not exist."""
    precisions = [known.value for known in Precision]
    if precision is not None and precision not in precisions:
        raise ConfigError(f"precision ({precision}) does not exist; choose one of {', '.join(precisions)}")


def _tokenizer(folders: list[Path], settings: dict[str, Any]) -> Tokenizer | None:
    found = (tokenizer_beside(folder, settings) for folder in folders)
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)


def _defaults(folders: list[Path]) -> GenerationDefaults:
    """Return the defaults of the first folder that gives any; the tokens that end a text are those of all folders."""
    found = [read_defaults(folder) for folder in folders]
    ends = tuple(dict.fromkeys(end for one in found for end in one.end_token_ids))
    given = (one for one in found if one != GenerationDefaults(end_token_ids=one.end_token_ids))
    return replace(next(given, found[0]), end_token_ids=ends)
