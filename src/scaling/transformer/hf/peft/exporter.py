"""Export an adapter checkpoint as a folder of PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from scaling.core import (
    BaseReference,
    CheckpointError,
    CheckpointReader,
    ScalingError,
    StoredCheckpoint,
    first_of,
    list_steps,
    read_manifest,
)
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.finetuning.stored import StoredAdapter
from scaling.transformer.hf.new_folder import require_free
from scaling.transformer.hf.peft.base import BaseTensors, modules_on, sections_of
from scaling.transformer.hf.peft.folder import kept_fields, write_adapter
from scaling.transformer.hf.peft.importer import KEPT
from scaling.transformer.hf.peft.translate import Ours, Theirs, to_peft
from scaling.transformer.hf.peft.values import Values
from scaling.transformer.hf.precision import WEIGHT_TYPES

_NAMED: Final = 5


@dataclass(frozen=True)
class ExportedAdapter:
    """The result of an export."""

    path: Path
    method: str
    remarks: tuple[str, ...] = ()


def export_adapter(
    stored: StoredCheckpoint, target: Path, *, dtype: torch.dtype | None = None, base: Path | None = None
) -> ExportedAdapter:
    """Write the adapter in a checkpoint, in `dtype` or in its stored types.

    `base` is the place of its base, if that was moved.

    Raises:
        ConfigError: PEFT has no form for the adapter, or `target` exists and is not an empty folder.
        CheckpointError: The checkpoint is not an adapter, or its base is needed and missing.
        StorageError: Something cannot be read or written.
    """
    require_free(target)
    adapter = StoredAdapter.of(stored)
    architecture, reference = adapter.architecture, adapter.reference
    modules = modules_on(architecture, _folder_of(reference, base))

    def find() -> StoredCheckpoint:
        found = adapter.find_base(base, remedy="say where it is with --base")
        if found is None:
            raise CheckpointError(
                f"{stored.path} was trained on random weights, of which PEFT would need a part; train all of it, or "
                "merge it"
            )
        return found

    with CheckpointReader(stored) as reader, BaseTensors(find) as tensors_of_base:
        tensors = {key: _lazy(reader, key) for key in adapter.tensors}
        _require_all(adapter)
        theirs = to_peft(Ours(sections_of(architecture), tensors), modules, tensors_of_base)
        kept: Any = stored.manifest.information.get(KEPT)
        name, of_base = _told_by_base(reference)
        said = {"base_model_name_or_path": name, "revision": None}
        said |= kept_fields(kept if isinstance(kept, dict) else {})
        rounded = {name: values if dtype is None else values.to(dtype) for name, values in theirs.tensors.items()}
        write_adapter(target, Theirs({**theirs.config, **said}, rounded))
    return ExportedAdapter(target, theirs.config["peft_type"], tuple(_remarks(architecture.vocab_size, of_base)))


def _told_by_base(reference: BaseReference | None) -> tuple[str | None, int | None]:
    """Return where a base was imported from and how many tokens it has, if it is still in its place.

    Nothing that is computed depends on these.
    """
    try:
        manifest = None if reference is None else read_manifest(reference.path)
    except (ScalingError, OSError):
        manifest = None
    if manifest is None:
        return None, None
    name, table = manifest.information.get("imported_from"), manifest.tensors.get("layers.0.embedding.weight")
    return name if isinstance(name, str) else None, None if table is None else table.shape[0]


def _remarks(tokens: int, of_base: int | None) -> Iterator[str]:
    if of_base is not None and of_base < tokens:
        yield (
            f"the base has {of_base} tokens, the adapter {tokens}: call model.resize_token_embeddings({tokens}) before "
            "PeftModel.from_pretrained"
        )


def _folder_of(reference: BaseReference | None, base: Path | None) -> Path | None:
    """Return the folder of the base's step folders."""
    given = base if base is not None or reference is None else reference.path
    if given is None:
        return None
    return given if base is not None and list_steps(given) else given.absolute().parent


def _require_all(adapter: StoredAdapter) -> None:
    """Refuse an adapter of which a part was not trained and thus not saved."""
    planned = {parameter.name for parameter in adapter.plan.parameters()}
    of_base = {parameter.name for parameter in base_plan_of(adapter.architecture).parameters()}
    if missing := sorted(planned - of_base - adapter.tensors):
        raise CheckpointError(
            f"{adapter.path} does not hold {first_of(missing, _NAMED)}, which no training group took; PEFT has no form "
            "for that: merge the adapter (scaling checkpoint merge) and export the model"
        )
    if extra := sorted(adapter.tensors - planned):
        raise CheckpointError(
            f"{adapter.path} holds {first_of(extra, _NAMED)}, which its configuration does not name; the checkpoint "
            "contradicts itself"
        )


def _lazy(reader: CheckpointReader, key: str) -> Values:
    entry = reader.stored.manifest.tensors[key]
    if entry.dtype not in WEIGHT_TYPES:
        raise CheckpointError(f"{reader.stored.path}: {key} is of type {entry.dtype}; cast the checkpoint first")
    return Values(WEIGHT_TYPES[entry.dtype], entry.shape, lambda: reader.read(key))
