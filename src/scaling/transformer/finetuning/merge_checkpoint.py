"""Merge adapters into the checkpoint of their base: a whole model without methods, written layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from scaling.core import (
    BaseReference,
    Checkpointer,
    CheckpointError,
    CheckpointReader,
    ConfigError,
    LazyTensor,
    StoredCheckpoint,
    Topology,
    annotate,
    fill,
    first_of,
    glance,
    list_steps,
    merge_edits,
    meta,
    save_pieces,
    whole,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.choices import Precision
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.finetuning.attach import put_edits
from scaling.transformer.finetuning.mergeable import SETTINGS, merge_needs
from scaling.transformer.finetuning.stored import StoredAdapter, require_whole
from scaling.transformer.hf.companions import Companions, companions_of_checkpoints
from scaling.transformer.hf.precision import WEIGHT_TYPES
from scaling.transformer.layers.head import LogitBias
from scaling.transformer.layers.parts import PartMaker
from scaling.transformer.model import layer_specs
from scaling.transformer.stored_model import architecture_of

MERGED: Final = "merged"
"""Name of the scalar of a merged checkpoint that records the base and the adapters."""

_TABLE: Final = "layers.0.embedding.weight"


def merge_checkpoint(base: StoredCheckpoint, adapters: Sequence[StoredCheckpoint], target: Path) -> Path:
    """Write the base with the adapters merged into it, one after another, as a checkpoint; return its step folder.

    Its step is that of the last adapter, as is its configuration, except for precision and methods. Weights are
    computed in float32 (float64 ones in float64) and rounded once to the type that the base has.

    Raises:
        CheckpointError: The base is not a whole model, an adapter is for another base or is already merged into it, or
            `target` holds a checkpoint of the step.
        ConfigError: An adapter is not a change of weights.
        StorageError: Something cannot be read or written.
    """
    require_whole(base, instead="name the base itself")
    opened = [StoredAdapter.of(stored) for stored in adapters]
    for adapter in opened:
        _require_for(adapter, base)
    _require_different(opened)
    architecture = _architecture(base, opened)
    settings = {**architecture_of(base)[1], **_told(opened[-1].settings)}
    merged: Any = base.manifest.scalars.get(MERGED) or {"base": BaseReference.to(base).as_dict(), "adapters": []}
    own = [BaseReference.to(adapter.stored).as_dict() for adapter in opened]
    with ExitStack() as stack:
        readers = [stack.enter_context(CheckpointReader(stored)) for stored in (base, *adapters)]
        layers = _MergedLayers(architecture, readers[0], list(zip(opened, readers[1:], strict=True)))
        return save_pieces(
            target,
            opened[-1].stored.step,
            layers.tensors(),
            scalars={
                "config": {**_told(settings), "transformer_architecture": architecture.as_dict()},
                MERGED: {"base": merged["base"], "adapters": [*merged["adapters"], *own]},
            },
            information={"merged_from": [str(stored.path) for stored in (base, *adapters)], "ranks": 1},
        )


def base_meant(folder: Path, adapter: StoredCheckpoint) -> StoredCheckpoint:
    """Return the base in a folder: the step on which the adapter was trained, or else the newest."""
    reference = StoredAdapter.of(adapter).reference
    for step in list_steps(folder):
        glimpsed = glance(step).found
        if glimpsed and reference and not reference.differences(glimpsed.manifest):
            folder = step
    return Checkpointer(None).find(folder, weights_only=True).require()


def companions_of_merged(base: StoredCheckpoint, adapter: StoredCheckpoint) -> Companions:
    """Return the companions of an adapter, with those of its base for the ones that it lacks."""
    first, second = (companions_of_checkpoints(stored.path.absolute().parent) for stored in (adapter, base))
    return Companions(first.tokenizer or second.tokenizer, {**second.others, **first.others})


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a merged model keeps beside its architecture: nothing about its training."""
    kept = {"version": settings["version"]} if "version" in settings else {}
    if "tokenizer" in settings.get("fingerprints", {}):
        kept["fingerprints"] = {"tokenizer": settings["fingerprints"]["tokenizer"]}
    end = settings.get("data", {}).get("eod_token_id")
    return kept if end is None else kept | {"data": {"eod_token_id": end}}


def _require_for(adapter: StoredAdapter, base: StoredCheckpoint) -> None:
    before: Any = base.manifest.scalars.get(MERGED)
    reference = adapter.reference
    if before is not None and any(one["digest"] == adapter.digest for one in before["adapters"]):
        raise CheckpointError(f"{adapter.path} is merged into {base.path} already; leave it out")
    if before is not None and reference is not None and before["base"]["digest"] == reference.digest:
        if adapter.of_base:
            raise CheckpointError(
                f"{adapter.path} trained {first_of(sorted(adapter.of_base), 3)} of its base itself, and {base.path} "
                "no longer has what it started from; merge all adapters in one command"
            )
        return
    adapter.require_fits(base_plan_of(adapter.architecture), base, remedy="name its own base")


def _require_different(adapters: Sequence[StoredAdapter]) -> None:
    for index, adapter in enumerate(adapters):
        for other in adapters[:index]:
            if adapter.digest == other.digest:
                raise CheckpointError(f"{adapter.path} is named twice, or is a copy of {other.path}; merge it once")
            sizes = other.architecture.vocab_size, adapter.architecture.vocab_size
            if sizes[0] != sizes[1]:
                raise CheckpointError(
                    f"{other.path} and {adapter.path} have vocabularies of {sizes[0]} and {sizes[1]} tokens, so they "
                    "cannot become one model; merge one of them"
                )


def _architecture(base: StoredCheckpoint, adapters: Sequence[StoredAdapter]) -> TransformerArchitectureConfig:
    """Return the architecture of the merged model: with the biases and the head that it needs, and without methods."""
    stored, _ = architecture_of(base)
    changes: dict[str, Any] = {name: getattr(stored, name) for name in SETTINGS}
    for adapter in adapters:
        needs = merge_needs(adapter.plan)
        if needs.impossible:
            raise ConfigError(
                f"{adapter.path} has {' and '.join(needs.impossible)}, so it cannot be merged; use it beside its base "
                f"(scaling generate {adapter.path})"
            )
        changes |= needs.settings
    return adapters[-1].base_architecture.model_copy(update={**changes, "precision": stored.precision})


@final
class _MergedLayers:
    """The layers of the merged model, made one at a time as their tensors are requested."""

    def __init__(
        self,
        architecture: TransformerArchitectureConfig,
        base: CheckpointReader,
        adapters: Sequence[tuple[StoredAdapter, CheckpointReader]],
    ) -> None:
        self._architecture = architecture
        exact = architecture.precision is Precision.FLOAT64
        computed = architecture.model_copy(update={"precision": Precision.FLOAT64 if exact else Precision.FLOAT32})
        topology = Topology.single()
        self._seed = adapters[-1][0].seed
        self._plan = base_plan_of(computed)
        self._specs = layer_specs(computed, topology, seed=self._seed)
        self._make = PartMaker(self._plan, topology, seed=self._seed)
        self._base = base
        self._adapters = adapters
        self._index = -1
        self._values: Mapping[str, Tensor] = {}

    def tensors(self) -> Iterator[LazyTensor]:
        """Yield the tensors in the order of the layers."""
        for parameter in self._plan.parameters():
            source, stored = self._source(parameter.name), self._base.stored.manifest.tensors
            dtype = self._architecture.precision.dtype if source is None else WEIGHT_TYPES[stored[source].dtype]
            load: Callable[[], Tensor] = partial(self._load, parameter.name, dtype)
            yield LazyTensor(parameter.name, parameter.shape, dtype, [(whole(parameter.shape), load)])

    def _load(self, name: str, dtype: torch.dtype) -> Tensor:
        index = int(name.split(".")[1])
        if index != self._index:
            self._values = {}
            self._values, self._index = self._merged(index), index
        return self._values[name].to(dtype)

    @torch.no_grad()
    def _merged(self, index: int) -> dict[str, Tensor]:
        layer = self._specs[index].build()
        for name, parameter in layer.named_parameters():
            annotate(parameter, meta(parameter).named(f"layers.{index}.{name}"))
        fill(layer, seed=self._seed)
        weights = {
            piece.key: piece.local(parameter.detach())
            for parameter in layer.parameters()
            for piece in meta(parameter).pieces
        }
        for key, values in weights.items():
            if (source := self._source(key)) is not None:
                self._read(self._base, source, values)
        bias = next((part.weight for part in layer.modules() if isinstance(part, LogitBias)), None)
        for number, (adapter, reader) in enumerate(self._adapters):
            for key, values in weights.items():
                self._replace(adapter, reader, key, values)
            edits = put_edits(adapter, reader, layer, index, name=str(number), make=self._make)
            merge_edits(layer, edits, logit_bias=bias)
        return weights

    def _replace(self, adapter: StoredAdapter, reader: CheckpointReader, key: str, values: Tensor) -> None:
        """Apply an adapter's own values of a tensor of the base, keeping the changes made by the adapters before it."""
        source = key if key in adapter.of_base else self._table_of(key)
        if source not in adapter.of_base:
            return
        before, of_base = values.clone(), self._source(key)
        self._read(reader, source, values)
        if of_base is not None:
            started = before.clone()
            self._read(self._base, of_base, started)
            values += before - started

    def _read(self, reader: CheckpointReader, source: str, into: Tensor) -> None:
        """Read a tensor, which may have fewer rows than are needed: the other rows keep their initial values."""
        shape = reader.stored.manifest.tensors[source].shape
        into[: shape[0]] = reader.read(source).to(into.dtype)

    def _source(self, key: str) -> str | None:
        """Return the base's tensor that a tensor starts from; None: zeros, for a bias that the base does not have."""
        stored = self._base.stored.manifest.tensors
        if key in stored:
            return key
        if self._table_of(key) in stored:
            return self._table_of(key)
        if key.endswith((".bias", ".logit_bias.weight")):
            return None
        raise CheckpointError(f"{self._base.stored.path} lacks {key}; name a checkpoint that holds the whole model")

    def _table_of(self, key: str) -> str:
        """Return the name of the table that a head shared before the merge; for any other tensor, its own name."""
        last = self._plan.num_layers - 1
        return _TABLE if key in (f"layers.{last}.linear.weight", f"layers.{last}.embedding.weight") else key
