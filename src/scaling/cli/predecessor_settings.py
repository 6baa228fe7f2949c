"""The configuration stored in an imported checkpoint of the predecessor, and the tokenizer that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.core import RunIdentity
from scaling.core.config.config_file import read_config
from scaling.core.config.yaml_text import parse_yaml
from scaling.core.errors import ConfigError, DataError
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.prepare import resolve_tokens
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer

ARCHITECTURE = "transformer_architecture"


@dataclass(frozen=True)
class Settings:
    """The data stored in a checkpoint beside its tensors."""

    scalars: dict[str, Any] = field(default_factory=dict)
    num_layers: int | None = None
    """The number of layers that the checkpoint must have; None where it is not known."""
    remarks: tuple[str, ...] = ()
    """Remarks for the user."""


def tokenizer_of(folder: Path) -> Path:
    """Return the path of a step folder's tokenizer: in the folder, as published, else beside it, as a run writes it."""
    inside = folder / TOKENIZER_FILE
    return inside if inside.is_file() else folder.absolute().parent / TOKENIZER_FILE


def read_settings(config_file: Path, tokenizer_file: Path) -> Settings:
    """Return the settings that a training with this tokenizer would store, as far as the configuration can be read.

    The architecture is enough to generate text, whatever the other sections say: they are about a training that is
    over. Sections that cannot be read are not stored either, because a later training compares its configuration with
    the stored one.
    """
    remarks = []
    is_whole = True
    try:
        try:
            config = TransformerConfig.from_yaml(config_file, quiet=True)
        except ConfigError as error:
            config, is_whole = _essentials(config_file), False
            remarks.append(f"only the model and its tokens are taken from the configuration; of the rest: {error}")
    except ConfigError as error:
        return Settings(
            remarks=(f"the weights can be trained on, but not generated from, without a configuration: {error}",)
        )
    architecture = config.transformer_architecture
    # A tied head repeats the embedding, so nothing is lost where its file is missing.
    num_layers = plan_of(architecture).num_layers - (architecture.lm_head and architecture.weight_tying)
    fingerprints: dict[str, str] = {}
    if tokenizer_file.is_file():
        try:
            tokenizer = Tokenizer.from_file(tokenizer_file)
            fingerprints = {"tokenizer": tokenizer.sha256}
            config = resolve_tokens(config, tokenizer)
        except (ConfigError, DataError) as error:
            remarks.append(f"{tokenizer_file} does not say how documents end and what the vocabulary is: {error}")
    stored = RunIdentity(config, fingerprints).as_dict()
    if not is_whole:
        essential = {"data": {"eod_token_id": stored["data"]["eod_token_id"]}}
        stored = {
            name: stored[name] for name in ("version", ARCHITECTURE, "fingerprints") if name in stored
        } | essential
    # Without the tokenizer, the values that the configuration leaves to it are unknown.
    if config.data.eod_token_id is None:
        del stored["data"]["eod_token_id"]
    if not config.transformer_architecture.vocab_size:
        del stored[ARCHITECTURE]["vocab_size"]
    return Settings({"config": stored}, num_layers, tuple(remarks))


def _essentials(config_file: Path) -> TransformerConfig:
    """Return a configuration with a file's settings of the model and its tokens, everything else at its default.

    `ConfigError` where the file has no settings of the model, or some that this version does not know.
    """
    values, _ = parse_yaml(read_config(config_file), source=str(config_file))
    names = (ARCHITECTURE, *(old for old, new in TransformerConfig.former_names.items() if new == ARCHITECTURE))
    essential = {name: values[name] for name in (*names, "version") if name in values}
    if not any(name in essential for name in names):
        raise ConfigError(f"{config_file} has no {ARCHITECTURE}")
    data = values.get("data")
    if isinstance(data, dict) and "eod_token_id" in data:
        essential["data"] = {"eod_token_id": data["eod_token_id"]}
    return TransformerConfig.from_dict(essential, quiet=True, source=str(config_file))
