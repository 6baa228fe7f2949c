"""StoredAdapter: a checkpoint that holds only parameters trained on a base, and the check that it fits a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, final

from typing_extensions import Self

from scaling.core import (
    NAME_PATTERN,
    OPTIMIZER_PREFIX,
    BaseReference,
    CheckpointError,
    ConfigError,
    StoredCheckpoint,
    find_base,
    first_of,
    is_on_base,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.plan.edits import SoftPromptPlan
from scaling.transformer.plan.model import LayerPlan, ModelPlan
from scaling.transformer.stored_model import architecture_of

_NAMED: Final = 5


@final
@dataclass(frozen=True)
class StoredAdapter:
    """An adapter checkpoint and the model that it is part of."""

    stored: StoredCheckpoint
    architecture: TransformerArchitectureConfig
    """The architecture with the methods."""
    settings: Mapping[str, Any]
    """All settings of the checkpoint."""
    reference: BaseReference | None
    """The base; None where the adapter was trained on random weights."""

    @classmethod
    def of(cls, stored: StoredCheckpoint) -> Self:
        """Return the adapter in a checkpoint; `CheckpointError` where that holds a whole model."""
        architecture, settings = architecture_of(stored)
        if not is_on_base(stored.manifest):
            raise CheckpointError(
                f"{stored.path} holds a whole model, not what was trained on one; name the checkpoint of a fine-tuning"
            )
        return cls(stored, architecture, settings, BaseReference.of(stored.manifest.scalars))

    @property
    def path(self) -> Path:
        """Return the step folder."""
        return self.stored.path

    @property
    def digest(self) -> str:
        """Return the digest of the stored weights."""
        return self.stored.manifest.weights_digest

    @property
    def base_architecture(self) -> TransformerArchitectureConfig:
        """Return the architecture without the methods."""
        return self.architecture.without_methods()

    @property
    def seed(self) -> int:
        """Return the seed of the fine-tuning: values that were not trained, and so not saved, follow from the seed."""
        return int(self.settings.get("trainer", {}).get("seed", 0))

    @property
    def name(self) -> str:
        """Return the adapter's name in its configuration."""
        found = self.architecture
        sections = (
            found.lora_config,
            found.ia3_config,
            found.bitfit_bias_config,
            found.adapter_config,
            found.softprompt_config,
        )
        unnamed = "token_rows" if found.finetunable_token_ids else "adapter"
        return next((section.name for section in sections if section is not None), unnamed)

    @property
    def prompt(self) -> int:
        """Return the number of placeholders in front of each text."""
        return sum(edit.length for edit in self.layers[0].edits if isinstance(edit, SoftPromptPlan))

    @cached_property
    def plan(self) -> ModelPlan:
        """Return the model with the edits."""
        return plan_of(self.architecture)

    @cached_property
    def layers(self) -> tuple[LayerPlan, ...]:
        """Return the layers with their edits."""
        return tuple(self.plan.layers())

    @cached_property
    def tensors(self) -> frozenset[str]:
        """Return the names of the stored tensors, without states of the optimizer."""
        return frozenset(name for name in self.stored.manifest.tensors if not name.startswith(OPTIMIZER_PREFIX))

    @cached_property
    def of_base(self) -> frozenset[str]:
        """Return the names of the stored tensors that replace tensors of the base."""
        return self.tensors & {parameter.name for parameter in base_plan_of(self.architecture).parameters()}

    @cached_property
    def _shared(self) -> dict[str, str]:
        owners: dict[str, str] = {}
        for index, layer in enumerate(self.layers):
            for name in layer.shared:
                owners.setdefault(name, f"layers.{index}.{name}")
        return owners

    def key(self, layer: int, name: str) -> str:
        """Return the stored name of a layer's parameter; one that layers share has its name in the first of them."""
        return self._shared[name] if name in self.layers[layer].shared else f"layers.{layer}.{name}"

    def find_base(self, elsewhere: Path | None = None, *, remedy: str) -> StoredCheckpoint | None:
        """Return the base, from its former place or else from `elsewhere`; None where there is none."""
        return None if self.reference is None else find_base(self.reference, elsewhere, remedy=remedy)

    def require_fits(self, model: ModelPlan, base: StoredCheckpoint | None, *, remedy: str) -> None:
        """Refuse an adapter for another base: by digest where the base's digest is known, then by shapes.

        `model` is the model that is loaded, without methods; `remedy` says what to do about another base.
        """
        if base is not None and (self.reference is None or self.reference.differences(base.manifest)):
            trained = "random weights" if self.reference is None else f"the base {self.reference}"
            raise CheckpointError(f"{self.path} was trained on {trained}, not on {BaseReference.to(base)}; {remedy}")
        problems = [*self._other_model(model), *self._other_tensors()]
        if problems:
            shown = "\n".join(f"  - {problem}" for problem in problems[:_NAMED])
            more = f"\n  and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise CheckpointError(f"{self.path} does not fit the model:\n{shown}{more}\n{remedy}")

    def require_name(self, name: str | None) -> str:
        """Return the given name, or the adapter's own where none is given; `ConfigError` for an invalid name."""
        chosen = self.name if name is None else name
        if re.fullmatch(NAME_PATTERN, chosen) is None:
            raise ConfigError(f"name ({chosen!r}) of an adapter must be letters, digits, _ and -")
        return chosen

    def _other_model(self, model: ModelPlan) -> Iterator[str]:
        here = {parameter.name: parameter.shape for parameter in model.parameters()}
        there = {parameter.name: parameter.shape for parameter in base_plan_of(self.architecture).parameters()}
        for name in here.keys() | there.keys():
            if here.get(name) != there.get(name):
                yield f"{name} is {_shape(there.get(name))} in its base, and {_shape(here.get(name))} in the model"

    def _other_tensors(self) -> Iterator[str]:
        planned = {parameter.name: parameter.shape for parameter in self.plan.parameters()}
        if extra := sorted(self.tensors - planned.keys()):
            yield f"it holds {first_of(extra, _NAMED)}, which its configuration does not name"
        for name in sorted(self.tensors & planned.keys()):
            shape = self.stored.manifest.tensors[name].shape
            if shape != planned[name]:
                yield f"its {name} is {_shape(shape)}, but its configuration makes it {_shape(planned[name])}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


def require_whole(stored: StoredCheckpoint, *, instead: str) -> None:
    """Refuse a checkpoint that holds only parameters trained on a base, and say what to do `instead`."""
    if not is_on_base(stored.manifest):
        return
    reference = BaseReference.of(stored.manifest.scalars)
    base = "BASE" if reference is None else str(reference.path)
    raise CheckpointError(
        f"{stored.path} holds only what was trained on a base; merge the two first (scaling checkpoint merge {base} "
        f"{stored.path} DST), or {instead}"
    )
