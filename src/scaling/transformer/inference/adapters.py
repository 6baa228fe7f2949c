"""Adapters beside a loaded base: at most one acts at a time; they can be merged into the base and removed again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from scaling.core import (
    BaseReference,
    Checkpointer,
    CheckpointError,
    CheckpointReader,
    ConfigError,
    Edit,
    ParallelModule,
    StoredCheckpoint,
    Topology,
    communicator,
    merge_edits,
    meta,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.finetuning.attach import put_edits, replaced_values, stored_values
from scaling.transformer.finetuning.mergeable import merge_needs
from scaling.transformer.finetuning.stored import StoredAdapter
from scaling.transformer.layers.head import LogitBias
from scaling.transformer.layers.parts import PartMaker

_OTHER_BASE = "load an adapter of this base, or open the adapter alone: TransformerInferenceModule.from_checkpoint"


@dataclass(frozen=True)
class Loaded:
    """An adapter beside the base."""

    stored: StoredAdapter
    edits: tuple[Edit, ...]
    replaced: Mapping[nn.Parameter, Tensor]
    """Values that replace parameters of the base."""
    prompt: int
    """Number of placeholders in front of each text."""


@final
class Adapters:
    """The adapters of one model, by name. Flags and pointers select the one that acts: nothing is copied."""

    def __init__(self, module: ParallelModule, config: TransformerArchitectureConfig, topology: Topology) -> None:
        self._module = module
        self._config = config
        self._checkpointer = Checkpointer(None, communicator=communicator(topology))
        self._make = PartMaker(plan_of(config), topology, seed=0)
        self._own = {parameter: parameter.data for parameter in module.parameters()}
        self._weights = list(module.global_tensors())  # views of the base, even while an adapter replaces parameters
        self._base: StoredCheckpoint | None = None
        self._grown: dict[str, list[tuple[Tensor, Tensor]]] = {}  # rows that are not stored, and their values
        self._loaded: dict[str, Loaded] = {}
        self._active: str | None = None
        self.merged: list[str] = []
        """Names of the adapters that are merged into the weights."""

    def read_base(self, stored: StoredCheckpoint, *, grown: Sequence[str] = ()) -> None:
        """Load the base from its checkpoint, each rank its own part. Collective: all ranks.

        `grown`: patterns of tables with more rows than are stored.
        """
        self._copy(stored, grown)
        self._base = stored
        self._grown = {}
        entries = stored.manifest.tensors
        for tensor in self._weights:
            if tensor.key in entries and entries[tensor.key].shape != tensor.shape:
                rows = entries[tensor.key].shape[0]
                self._grown[tensor.key] = [(view[rows:], view[rows:].clone()) for _, view in tensor.parts]

    def load(self, stored: StoredAdapter, name: str | None) -> str:
        """Load an adapter beside the base and return its name."""
        chosen = stored.require_name(name)
        if chosen in self._loaded:
            raise ConfigError(
                f"there is an adapter named {chosen!r} already, from {self._loaded[chosen].stored.path}; give the one "
                f"from {stored.path} another name: load_adapter(path, name=...)"
            )
        if self.merged:
            raise ConfigError(
                f"{', '.join(self.merged)} is merged into the base, which {stored.path} does not know; call "
                "unmerge_adapter first"
            )
        stored.require_fits(base_plan_of(self._config), self._base, remedy=_OTHER_BASE)
        self.use(None)
        edits: list[Edit] = []
        with CheckpointReader(stored.stored) as reader:
            reader.open_all()  # files stay readable if the folder is removed meanwhile, as layers are edited only once
            replaced = replaced_values(stored, reader, self._module.parameters_with_meta())
            for index, layer in self._module.layers():
                edits += put_edits(stored, reader, layer, index, name=chosen, make=self._make)
        self._loaded[chosen] = Loaded(stored, tuple(edits), replaced, stored.prompt)
        return chosen

    def use(self, name: str | None) -> int:
        """Make an adapter act, or none, and return the number of placeholders that it needs in front of a text."""
        if name is not None and self.merged:
            raise ConfigError(
                f"adapter ({name}) cannot act while {', '.join(self.merged)} is merged into the base; leave adapter "
                "out, or call unmerge_adapter first"
            )
        found = None if name is None else self._require(name)
        if name != self._active:
            if self._active is not None:
                self._set(self._loaded[self._active], active=False)
            if found is not None:
                self._set(found, active=True)
            self._active = name
        return 0 if found is None else found.prompt

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Merge an adapter into the weights."""
        found = self._require(name)
        if name in self.merged:
            raise ConfigError(f"adapter ({name}) is merged already; call unmerge_adapter to have the base again")
        needs = merge_needs(found.stored.plan)
        if needs.impossible:
            raise ConfigError(
                f"adapter ({name}) cannot be merged: it has {' and '.join(needs.impossible)}; use it as it is"
            )
        changes = {
            setting: value for setting, value in needs.settings.items() if getattr(self._config, setting) != value
        }
        if changes:
            wanted = ", ".join(f"{setting} {str(value).lower()}" for setting, value in changes.items())
            raise ConfigError(
                f"adapter ({name}) needs {wanted} to become part of the weights; scaling checkpoint merge "
                "writes such a model"
            )
        self._require_base()
        self.use(None)
        for parameter, values in found.replaced.items():
            wide = torch.float64 if values.dtype is torch.float64 else torch.float32
            if self.merged:  # add the adapter's change to those of the adapters merged before
                values = parameter.to(wide) + (values.to(wide) - self._as_stored(parameter).to(wide))
            parameter.copy_(values)
        bias = next((part.weight for part in self._module.modules() if isinstance(part, LogitBias)), None)
        merge_edits(self._module, found.edits, logit_bias=bias)
        self.merged.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore all bits of the base from its checkpoint. Collective: all ranks."""
        if not self.merged:
            raise ConfigError("no adapter is merged, so there is nothing to take out of the weights")
        base = self._require_base()
        same = BaseReference.to(base).differences
        self._copy(
            self._checkpointer.find(base.path, weights_only=True, check=same).require(),
            [f"^{re.escape(key)}$" for key in self._grown],
        )
        for beyond in self._grown.values():
            for view, values in beyond:
                view.copy_(values)
        self.merged.clear()

    def _copy(self, stored: StoredCheckpoint, grown: Sequence[str]) -> None:
        self._checkpointer.load(stored, self._weights, allowed_unexpected=[r"^optimizer\."], grown=grown)

    def _require_base(self) -> StoredCheckpoint:
        if self._base is None:
            raise CheckpointError(
                "the weights of this model are from no checkpoint, from which they could be read again after a merge; "
                "use the adapter as it is"
            )
        return self._base

    def _require(self, name: str) -> Loaded:
        if name not in self._loaded:
            known = f"there are {', '.join(self._loaded)}" if self._loaded else "there are none"
            raise ConfigError(f"adapter ({name}) is not loaded; {known}: load_adapter(path) loads one")
        return self._loaded[name]

    def _set(self, adapter: Loaded, *, active: bool) -> None:
        for edit in adapter.edits:
            edit.active = active
        for parameter, values in adapter.replaced.items():
            parameter.data = values if active else self._own[parameter]

    def _as_stored(self, parameter: nn.Parameter) -> Tensor:
        """Return the values that a parameter has in the base."""
        base = self._require_base()
        with CheckpointReader(base) as reader:
            return stored_values(parameter, meta(parameter), reader, frozenset(base.manifest.tensors))
