"""Import a model of Hugging Face: everything is checked first, then streamed into a checkpoint piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from re import fullmatch
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core import (
    Box,
    CheckpointError,
    ConfigError,
    LazyTensor,
    LongRopeScaling,
    RunIdentity,
    TensorFile,
    first_of,
    list_steps,
    new_step_folder,
    open_plain,
    save_pieces,
    storage_errors,
    whole,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.end_token import ORIGIN_FILE, TOKENIZER_OF_A_MODEL
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, Tokenizer
from scaling.transformer.hf.choose import family_of
from scaling.transformer.hf.companions import Companions, Origin, companions_of_model, require_place
from scaling.transformer.hf.copies import PIECE_BYTES, copies_from, pieces_of_ours
from scaling.transformer.hf.family import Family
from scaling.transformer.hf.folder import CONFIG_FILE, LENGTH, ModelFolder, end_token_ids, read_folder
from scaling.transformer.hf.precision import WEIGHT_TYPES, name_in_configurations, prevailing
from scaling.transformer.hf.starting import require_place_for_config, write_starting_config
from scaling.transformer.hf.tensors import Source, TensorMap
from scaling.transformer.plan.attention import AttentionPlan

STEP: Final = 0
"""Step of the written checkpoint: nothing has been trained here yet."""

_NAMED: Final = 5


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    checkpoint: Path
    config_file: Path
    model_type: str
    remarks: tuple[str, ...] = ()
    """Remarks for the user."""


@dataclass(frozen=True)
class _Model:
    """A folder that has been checked to hold one whole model of a family and nothing else."""

    folder: ModelFolder
    family: Family
    section: Mapping[str, Any]
    """The section `transformer_architecture`, as the family reads it, with the precision of the weights."""
    architecture: TransformerArchitectureConfig
    maps: tuple[TensorMap, ...]
    names: Mapping[str, str]
    """Name of each tensor in the files, by its present name."""
    head: TensorMap | None
    """A tied head that the files hold nevertheless."""


def import_model(source: Path, target: Path) -> Imported:
    """Write the model in a folder of Hugging Face as the checkpoint of step 0 in `target`, weights only.

    Tokenizer, templates and a configuration for further training are written beside the step folder, which appears
    last. Memory is bounded whatever the model's size; nothing in the folder is executed.

    Raises:
        ConfigError: The configuration or the tokenizer does not belong to a model that is built here.
        CheckpointError: The weights are incomplete, not plain or not those of the configuration; or `target` already
            holds a checkpoint of step 0, or checkpoints of another model or tokenizer.
        StorageError: Something cannot be read or written.
    """
    folder = read_folder(source)
    _require_folder(target, source)
    target_step = new_step_folder(target, STEP)
    model = _model_in(folder)
    companions, tokenizer = _companions(model)
    require_place(companions, source, target)
    require_place_for_config(target)
    is_first = not list_steps(target)
    ends = end_token_ids(folder)
    for end in ends:
        if end >= model.architecture.vocab_size:
            raise ConfigError(
                f"{folder.config_file}: eos_token_id names token {end}, outside the vocabulary of "
                f"{model.architecture.vocab_size}; correct it, there or in generation_config.json"
            )
    with _Files(folder) as files:
        if model.head is not None:
            _require_tied(files, model, model.head)
        config = _config(model, ends)
        companions.write(target, tokenizer_name=TOKENIZER_FILE, replace=is_first)
        config_file = write_starting_config(
            model.section, target, end_token_id=config.data.eod_token_id, has_tokenizer=tokenizer is not None
        )
        fingerprints = {} if tokenizer is None else {"tokenizer": tokenizer.sha256}
        with storage_errors(f"importing {source}"):
            save_pieces(
                target,
                STEP,
                [tensor for theirs in model.maps for tensor in _lazy(files, model, theirs)],
                scalars={"config": _stored(config, fingerprints)},
                information={"imported_from": str(source), "family": model.family.model_type, "ranks": 1},
            )
    remarks = (*_remarks(folder, tokenizer, ends), *_remarks_on_length(model.architecture))
    return Imported(target_step, config_file, model.family.model_type, remarks)


def _require_folder(target: Path, source: Path) -> None:
    with storage_errors(f"looking at {target}"):
        if target.exists() and target.resolve() == source.resolve():
            raise ConfigError(
                f"{target} is the folder of the model itself; name another one to write the checkpoint into"
            )
        if (target.is_symlink() or target.exists()) and not target.is_dir():
            raise ConfigError(f"{target} is there already and not a folder; name another place to write to")


def _model_in(folder: ModelFolder) -> _Model:
    """Find the family, and check that the files hold all its tensors and nothing else."""
    family = family_of(folder.config, source=str(folder.config_file))
    sizes: dict[str, int] = {}
    for name, tensor in folder.tensors.items():
        if any(fullmatch(pattern, name) for pattern in family.ignored):
            continue
        if tensor.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{folder.path / tensor.file}: {name} is of type {tensor.dtype}; only weights of type "
                f"{', '.join(WEIGHT_TYPES)} are read: take the model before it was quantized"
            )
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + WEIGHT_TYPES[tensor.dtype].itemsize * prod(tensor.shape)
    precision = name_in_configurations(prevailing(sizes) if sizes else torch.float32)
    section = family.section(folder.config) | {"precision": precision}
    architecture = TransformerArchitectureConfig.from_dict(section)
    maps = family.tensors(plan_of(architecture))
    head = _tied_head(family, architecture, maps)
    names = _names(folder, family, [*maps, *([head] if head is not None else [])])
    _require_all(folder, maps, names)
    return _Model(
        folder, family, section, architecture, maps, names, head if head is not None and head.name in names else None
    )


def _tied_head(
    family: Family, architecture: TransformerArchitectureConfig, maps: Sequence[TensorMap]
) -> TensorMap | None:
    """Return the map of the head as it would be if it were not tied to the embedding, or None if it is not tied."""
    if not (architecture.weight_tying and architecture.lm_head):
        return None
    table = next(theirs for theirs in maps if theirs.name == family.embedding)
    return replace(table, name=family.head)


def _names(folder: ModelFolder, family: Family, maps: Sequence[TensorMap]) -> dict[str, str]:
    """Return the names in the files, by the present names; refuse tensors that do not belong to the family."""
    known = {theirs.name: theirs for theirs in maps}
    found: dict[str, str] = {}
    extra = []
    for name, tensor in folder.tensors.items():
        if any(fullmatch(pattern, name) for pattern in family.ignored):
            continue
        present = family.renamed(name)
        if present not in known:
            extra.append(name)
            continue
        if present in found:
            raise CheckpointError(f"{folder.path} holds {present} twice: as {found[present]} and as {name}; remove one")
        if tensor.shape != known[present].shape:
            raise CheckpointError(
                f"{folder.path / tensor.file}: {name} has the shape {list(tensor.shape)}, but {CONFIG_FILE} makes it "
                f"{list(known[present].shape)}; the two are not of one model, or {CONFIG_FILE} was changed"
            )
        found[present] = name
    if extra:
        raise CheckpointError(
            f"{folder.path / folder.tensors[extra[0]].file} holds {first_of(extra, _NAMED)}, which a "
            f"{family.architecture} with this {CONFIG_FILE} does not have; the two are not of one model, or this kind "
            "of model is not built here"
        )
    return found


def _require_all(folder: ModelFolder, maps: Sequence[TensorMap], names: Mapping[str, str]) -> None:
    missing = [theirs.name for theirs in maps if theirs.name not in names]
    if missing:
        raise CheckpointError(
            f"{folder.path} lacks {first_of(missing, _NAMED)}; the download is incomplete, or {CONFIG_FILE} is of "
            "another model"
        )


def _companions(model: _Model) -> tuple[Companions, Tokenizer | None]:
    """Return the companions, with the origin for an export, and the tokenizer; refuse one beyond the vocabulary."""
    folder, size = model.folder, model.architecture.vocab_size
    inert = model.family.inert(folder.config)
    if any(name in folder.config for name in ("dtype", "torch_dtype")):
        inert["dtype"] = model.architecture.precision.value
    if LENGTH in folder.config:
        inert[LENGTH] = folder.config[LENGTH]
    origin = Origin(model.family.model_type, end_token_ids(folder), inert)
    found = companions_of_model(folder.path)
    companions = Companions(found.tokenizer, {**found.others, ORIGIN_FILE: origin.encode()})
    if companions.tokenizer is None:
        return companions, None
    path = folder.path / TOKENIZER_OF_A_MODEL
    tokenizer = Tokenizer.from_file(path)
    if tokenizer.vocab_size > size:
        few = range(size, min(size + _NAMED, tokenizer.vocab_size))
        beyond = [name for token in few if (name := tokenizer.token_name(token)) is not None]
        raise ConfigError(
            f"{path} has token ids up to {tokenizer.vocab_size - 1}, but vocab_size in {folder.config_file} is {size}; "
            "the tokenizer is not this model's, or tokens were added that the model has no embedding for: remove what "
            f"is beyond from it where no text needs it ({', '.join(beyond)})"
        )
    return companions, tokenizer


def _config(model: _Model, ends: Sequence[int]) -> TransformerConfig:
    """Return the configuration of the model, with every setting of training at its default."""
    return TransformerConfig.from_dict(
        {
            "transformer_architecture": model.architecture.as_dict(),
            "data": {"eod_token_id": ends[0] if ends else None},
        },
        quiet=True,
        source=str(model.folder.config_file),
    )


def _stored(config: TransformerConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration that the checkpoint stores: only the parts that a training from it is compared with."""
    stored = RunIdentity(config, fingerprints).as_dict()
    names: tuple[str, ...] = ("version", "transformer_architecture", "fingerprints")
    kept = {name: stored[name] for name in names}
    end = stored["data"]["eod_token_id"]
    return kept if end is None else kept | {"data": {"eod_token_id": end}}


def _remarks(folder: ModelFolder, tokenizer: Tokenizer | None, ends: Sequence[int]) -> Iterator[str]:
    if tokenizer is None:
        yield (
            f"there is no {TOKENIZER_OF_A_MODEL} in {folder.path}: prompts and data have to be token ids. "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of transformers writes one where it can"
        )
    if not ends:
        yield f"{folder.config_file} names no eos_token_id: set data.eod_token_id to the token that ends documents"


def _remarks_on_length(architecture: TransformerArchitectureConfig) -> Iterator[str]:
    length = architecture.sequence_length
    for attention in plan_of(architecture).parts(AttentionPlan):
        scaling = None if attention.rotation is None else attention.rotation.scaling
        if isinstance(scaling, LongRopeScaling) and length > scaling.trained_length:
            yield (
                f"the rotation has one set of factors up to {scaling.trained_length} tokens and another beyond; here "
                f"the second is used throughout, as sequence_length is {length}, in transformers only for longer "
                f"texts. For short texts set transformer_architecture.sequence_length to {scaling.trained_length}"
            )
            return


def _lazy(files: _Files, model: _Model, theirs: TensorMap) -> Iterator[LazyTensor]:
    """Yield the tensors of ours that make up one of theirs."""
    name = model.names[theirs.name]
    dtype = WEIGHT_TYPES[model.folder.tensors[name].dtype]
    for source in theirs.sources:
        boxes = pieces_of_ours(theirs, source, max(1, PIECE_BYTES // dtype.itemsize))
        parts: list[tuple[Box, Callable[[], Tensor]]] = [
            (box, partial(_load, files, name, theirs, source, box, dtype)) for box in boxes
        ]
        yield LazyTensor(source.key, source.shape, dtype, parts)


def _load(files: _Files, name: str, theirs: TensorMap, source: Source, box: Box, dtype: torch.dtype) -> Tensor:
    """Read a box of one of our tensors from their file."""
    found = torch.empty(box.shape, dtype=dtype)
    for copy in copies_from(theirs, source, box):
        into = found[copy.ours.slices(box)]
        files.read_into(name, copy.theirs, into.t() if theirs.transposed else into)
    return found


def _require_tied(files: _Files, model: _Model, head: TensorMap) -> None:
    """Refuse a head that is not the embedding although the configuration says so."""
    names = [model.names[name] for name in (model.family.embedding, head.name)]
    first, second = (model.folder.tensors[name] for name in names)
    dtype = WEIGHT_TYPES[first.dtype]
    equal = first.dtype == second.dtype
    for box in whole(head.shape).cut(max(1, PIECE_BYTES // dtype.itemsize)) if equal else ():
        a, b = (torch.empty(box.shape, dtype=dtype) for _ in names)
        for name, values in zip(names, (a, b), strict=True):
            files.read_into(name, box, values)
        equal = torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        if not equal:
            break
    if not equal:
        raise CheckpointError(
            f"{model.folder.path / second.file}: {names[1]} differs from {names[0]}, but tie_word_embeddings in "
            f"{CONFIG_FILE} says that they are one; set it to false to keep both, or remove {names[1]}"
        )


class _Files:
    """The files of a folder, one open at a time; a file that has changed since its header was first read is refused."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._open: TensorFile | None = None
        self._name = ""

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def read_into(self, name: str, box: Box, into: Tensor) -> None:
        """Copy a box of a tensor into `into`."""
        file = self._folder.tensors[name].file
        if self._open is None or self._name != file:
            self._close()
            self._open = open_plain(self._folder.path / file, known=self._folder.files[file])
            self._name = file
        self._open.read_into(name, box, into)

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None
