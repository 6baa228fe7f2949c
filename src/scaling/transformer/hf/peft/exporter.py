"""Export an adapter checkpoint as a folder of PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaling.core import (
    OPTIMIZER_PREFIX,
    BaseReference,
    CheckpointError,
    CheckpointReader,
    StoredCheckpoint,
    find_base,
    list_steps,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.hf.new_folder import require_free
from scaling.transformer.hf.peft.base import SECTIONS, BaseTensors, modules_on
from scaling.transformer.hf.peft.folder import kept_fields, write_adapter
from scaling.transformer.hf.peft.importer import KEPT
from scaling.transformer.hf.peft.translate import Ours, Theirs, to_peft
from scaling.transformer.hf.peft.values import Values
from scaling.transformer.hf.precision import WEIGHT_TYPES
from scaling.transformer.stored_model import architecture_of


@dataclass(frozen=True)
class ExportedAdapter:
    """What an export has written."""

    path: Path
    method: str


def export_adapter(
    stored: StoredCheckpoint, target: Path, *, dtype: torch.dtype | None = None, base: Path | None = None
) -> ExportedAdapter:
    """Write what a checkpoint holds beside its base, in `dtype` or as it is stored.

    `base` is where that is now, if it was moved.

    Raises:
        ConfigError: PEFT has no form for it, or `target` holds something.
        CheckpointError: It is no adapter checkpoint, or its base is needed and not there.
        StorageError: Something cannot be read or written.
    """
    require_free(target)
    architecture, settings = architecture_of(stored)
    reference = BaseReference.of(stored.manifest.scalars)
    if reference is None:
        raise CheckpointError(f"{stored.path} is a whole model and no adapter on a base; export it without --adapter")
    modules = modules_on(settings["transformer_architecture"], _folder_of(reference, base))
    with CheckpointReader(stored) as reader, BaseTensors(lambda: find_base(reference, base)) as tensors_of_base:
        tensors = {}
        for key in stored.manifest.tensors:
            if not key.startswith(OPTIMIZER_PREFIX):
                tensors[key] = _lazy(reader, key)
        theirs = to_peft(Ours(sections_of(architecture), tensors), modules, tensors_of_base)
        kept: Any = stored.manifest.information.get(KEPT)
        said = {"base_model_name_or_path": None, "revision": None}
        said |= kept_fields(kept if isinstance(kept, dict) else {})
        rounded = {name: values if dtype is None else values.to(dtype) for name, values in theirs.tensors.items()}
        write_adapter(target, Theirs({**theirs.config, **said}, rounded))
    return ExportedAdapter(target, theirs.config["peft_type"])


def _folder_of(reference: BaseReference, base: Path | None) -> Path:
    """Return where the base's step folders are."""
    given = reference.path if base is None else base
    return given if base is not None and list_steps(given) else given.absolute().parent


def sections_of(architecture: TransformerArchitectureConfig) -> dict[str, Any]:
    """Return the sections of methods, with their defaults."""
    found = {name: section.model_dump() for name in SECTIONS if (section := getattr(architecture, name)) is not None}
    return {**found, "finetunable_token_ids": architecture.finetunable_token_ids}


def _lazy(reader: CheckpointReader, key: str) -> Values:
    entry = reader.stored.manifest.tensors[key]
    if entry.dtype not in WEIGHT_TYPES:
        raise CheckpointError(f"{reader.stored.path}: {key} is of type {entry.dtype}; cast the checkpoint first")
    return Values(WEIGHT_TYPES[entry.dtype], entry.shape, lambda: reader.read(key))
