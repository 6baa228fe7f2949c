"""Export a checkpoint of any layout as a model folder of Hugging Face: streamed, and published by one rename."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core import (
    OPTIMIZER_PREFIX,
    Box,
    CheckpointError,
    CheckpointReader,
    PlainTensor,
    StoredCheckpoint,
    first_of,
    storage_errors,
    write_plain,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.data.end_token import ORIGIN_FILE, TOKENIZER_OF_A_MODEL
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer
from scaling.transformer.finetuning.stored import require_whole
from scaling.transformer.hf.choose import family_for, follows_length
from scaling.transformer.hf.companions import Companions, Origin, companions_of_checkpoints, read_origin
from scaling.transformer.hf.copies import PIECE_BYTES, copies_into, pieces_of_theirs
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.folder import CONFIG_FILE, GENERATION_FILE, INDEX_FILE, LENGTH, WEIGHTS_FILE
from scaling.transformer.hf.new_folder import new_folder, require_free, write_json
from scaling.transformer.hf.precision import WEIGHT_TYPES, name_in_configurations, prevailing
from scaling.transformer.hf.tensors import TensorMap
from scaling.transformer.stored_model import architecture_of, tokenizer_beside

MAX_SHARD_BYTES: Final = 5 * 10**9
"""Largest size of a weight file, unless a single tensor is larger."""
TOKENIZER_CONFIG: Final = "tokenizer_config.json"

_NAMED: Final = 5


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    model_type: str
    files: tuple[str, ...]
    """Names of the weight files."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """One of their tensors, and the type in which it is written."""

    theirs: TensorMap
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Return the size of the data."""
        return prod(self.theirs.shape) * self.dtype.itemsize


def export_model(
    stored: StoredCheckpoint,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write the model of a checkpoint, in `dtype` or in its stored types, with the companions of its step folder.

    Memory is bounded whatever the model's size. After a kill or on a full disk, nothing is left at `target`.

    Raises:
        ConfigError: No family can express the architecture, or `target` exists and is not an empty folder.
        CheckpointError: The checkpoint is not a language model's, or its tensors are not those of its configuration.
        StorageError: Something cannot be read or written.
    """
    require_free(target)
    require_whole(stored, instead="export the adapter alone: --adapter")
    architecture, settings = architecture_of(stored)
    beside = stored.path.absolute().parent
    companions, origin = companions_of_checkpoints(beside), read_origin(beside)
    if companions.tokenizer is not None:
        tokenizer_beside(stored.path, settings)  # refuses a tokenizer of another run: its ids would mean something else
    family = family_for(architecture, model_type=None if origin is None else origin.model_type)
    written = _tensors(stored, family.tensors(plan_of(architecture)), dtype)
    shards = in_shards(written, max_shard_bytes)
    end = settings.get("data", {}).get("eod_token_id")
    ends = tuple(dict.fromkeys([*([end] if end is not None else []), *(origin.end_token_ids if origin else ())]))
    config = _config(family, architecture, origin, written, ends, is_cast=dtype is not None)
    with storage_errors(f"exporting {stored.path} to {target}"), new_folder(target) as folder:
        with CheckpointReader(stored) as reader:
            for name, tensors in shards.items():
                write_plain(folder / name, [_plain(reader, one) for one in tensors])
        if len(shards) > 1:
            write_json(folder / INDEX_FILE, _index(shards))
        write_json(folder / CONFIG_FILE, config)
        _write_companions(folder, companions, ends)
    remarks = [] if companions.tokenizer is not None else [f"there is no {TOKENIZER_FILE} beside {stored.path}"]
    return Exported(target, family.model_type, tuple(shards), tuple(remarks))


def in_shards(tensors: Sequence[Written], max_bytes: int) -> dict[str, list[Written]]:
    """Distribute tensors over files, in order; each file holds at least one tensor and is bounded in size.

    In a file, wide types come first, so that each tensor starts at a multiple of the size of its values.
    """
    shards: list[list[Written]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    ordered = [sorted(shard, key=lambda one: -one.dtype.itemsize) for shard in shards]
    if len(ordered) == 1:
        return {WEIGHTS_FILE: ordered[0]}
    return {
        f"model-{number:05d}-of-{len(ordered):05d}.safetensors": shard for number, shard in enumerate(ordered, start=1)
    }


def _tensors(stored: StoredCheckpoint, maps: Sequence[TensorMap], dtype: torch.dtype | None) -> list[Written]:
    """Return the tensors to write; refuse a checkpoint that does not hold exactly these."""
    entries = {name: entry for name, entry in stored.manifest.tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    written, used = [], set()
    for theirs in maps:
        types = []
        for source in theirs.sources:
            entry = entries.get(source.key)
            if entry is None:
                raise CheckpointError(
                    f"{stored.path} does not hold {source.key}, which its configuration describes and {theirs.name} "
                    "consists of; take a checkpoint that was saved whole"
                )
            if entry.shape != source.shape:
                raise CheckpointError(
                    f"{stored.path}: {source.key} has the shape {list(entry.shape)}, its configuration makes it "
                    f"{list(source.shape)}; the checkpoint contradicts itself"
                )
            if entry.dtype not in WEIGHT_TYPES:
                raise CheckpointError(
                    f"{stored.path}: {source.key} is of type {entry.dtype}; cast the checkpoint first, with `scaling "
                    "checkpoint cast`"
                )
            used.add(source.key)
            types.append(WEIGHT_TYPES[entry.dtype])
        common = types[0]
        for other in types[1:]:
            common = torch.promote_types(common, other)
        written.append(Written(theirs, dtype or common))
    if rest := sorted(entries.keys() - used):
        raise CheckpointError(
            f"{stored.path} holds {first_of(rest, _NAMED)}, which have no place in the exported model; merge "
            "them into its weights, or train without them"
        )
    return written


def _plain(reader: CheckpointReader, one: Written) -> PlainTensor:
    boxes = pieces_of_theirs(one.theirs, max(1, PIECE_BYTES // one.dtype.itemsize))
    pieces: list[Callable[[], Tensor]] = [partial(_load, reader, one, box) for box in boxes]
    return PlainTensor(one.theirs.name, one.dtype, one.theirs.shape, pieces)


def _load(reader: CheckpointReader, one: Written, box: Box) -> Tensor:
    """Assemble a box of one of their tensors."""
    found = torch.empty(box.shape, dtype=one.dtype)
    for copy in copies_into(one.theirs, box):
        into = found[copy.theirs.slices(box)]
        reader.read_into(copy.key, copy.ours, into.t() if one.theirs.transposed else into)
    return found


def _index(shards: Mapping[str, Sequence[Written]]) -> dict[str, Any]:
    size = sum(one.bytes for shard in shards.values() for one in shard)
    names = {one.theirs.name: file for file, shard in shards.items() for one in shard}
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}


def _config(
    family: Family,
    architecture: TransformerArchitectureConfig,
    origin: Origin | None,
    written: Sequence[Written],
    ends: Sequence[int],
    *,
    is_cast: bool,
) -> dict[str, Any]:
    """Return config.json: the fields of the family, and those that an import has kept, where they still hold."""
    if origin is not None and origin.model_type == family.model_type:
        kept = {name: value for name, value in origin.config.items() if name not in ("dtype", "transformers_version")}
        has_precision = is_cast or "dtype" in origin.config
    else:
        end = list(ends) if len(ends) > 1 else next(iter(ends), None)
        kept, has_precision = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}, True
    said = family.config(architecture, kept)
    length = kept.get(LENGTH)
    if isinstance(length, int) and length > said.get(LENGTH, length) and not follows_length(architecture):
        said[LENGTH] = length  # training on shorter texts does not shorten what the model can read
    said.pop("dtype", None)
    if has_precision:
        sizes = {name: sum(one.bytes for one in written if one.dtype is kind) for name, kind in WEIGHT_TYPES.items()}
        said["dtype"] = name_in_configurations(prevailing(sizes))
    return said


def _write_companions(folder: Path, companions: Companions, ends: Sequence[int]) -> None:
    """Write tokenizer, templates and generation defaults; files that no import brought are made as far as possible.

    A tokenizer file alone does not tell `transformers` how to read it, nor where a text ends.
    """
    others = {name: content for name, content in companions.others.items() if name != ORIGIN_FILE}
    Companions(companions.tokenizer, others).write(folder, tokenizer_name=TOKENIZER_OF_A_MODEL)
    if GENERATION_FILE not in others and ends:
        write_json(folder / GENERATION_FILE, {"eos_token_id": list(ends) if len(ends) > 1 else ends[0]})
    if TOKENIZER_CONFIG not in others and companions.tokenizer is not None:
        write_json(folder / TOKENIZER_CONFIG, dict(_tokenizer_config(companions.tokenizer, ends)))


def _tokenizer_config(tokenizer: bytes, ends: Sequence[int]) -> Iterator[tuple[str, Any]]:
    yield "tokenizer_class", "PreTrainedTokenizerFast"
    name = None if not ends else Tokenizer.from_str(tokenizer.decode()).token_name(ends[0])
    if name is not None:
        yield from (("eos_token", name), ("pad_token", name))
