"""EvaluatedModel: a checkpoint, of a whole model or of parameters trained on a base, loaded in any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from typing_extensions import Self

from scaling.core import (
    OPTIMIZER_PREFIX,
    BaseReference,
    Checkpointer,
    Communicator,
    ParallelModule,
    Recipe,
    StoredCheckpoint,
    Topology,
    TopologyConfig,
    find_base,
    is_on_base,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.stored_model import architecture_of, tokenizer_file_beside

_REMEDY: Final = (
    "put it back there, or merge the two (scaling checkpoint merge BASE ADAPTER DST) and name the merged one"
)


@final
@dataclass(frozen=True)
class EvaluatedModel:
    """A checkpoint to load, with its settings. Every method is collective: all ranks."""

    stored: StoredCheckpoint
    base: StoredCheckpoint | None
    """The base. None: the model is whole, or was trained on random weights."""
    architecture: TransformerArchitectureConfig
    settings: Mapping[str, Any]
    """All settings of the checkpoint."""
    tokenizer_file: Path | None
    """The tokenizer beside the checkpoint, or else beside its base."""
    ranks: Communicator | None
    """None: this process is alone."""

    @classmethod
    def of(cls, stored: StoredCheckpoint, *, precision: str | None = None, ranks: Communicator | None = None) -> Self:
        """Find the base of a checkpoint, and the tokenizer beside them.

        `precision` is the type that weights are converted to; None: as they were trained.

        Raises:
            CheckpointError: The checkpoint is not a model's, its base is missing, or the tokenizer is another one.
        """
        architecture, settings = architecture_of(stored)
        reference = BaseReference.of(stored.manifest.scalars) if is_on_base(stored.manifest) else None
        base = None if reference is None else find_base(reference, None, ranks, remedy=_REMEDY)
        if precision is not None:
            architecture = architecture.at_precision(precision)
        beside = (
            tokenizer_file_beside(found.path.absolute(), settings) for found in (stored, base) if found is not None
        )
        tokenizer_file = next((file for file in beside if file is not None), None)
        return cls(stored, base, architecture, settings, tokenizer_file, ranks)

    def load(self, recipe: Recipe, topology: Topology, layout: TopologyConfig) -> ParallelModule:
        """Build this rank's part of the model that a recipe of this architecture describes, and load it."""
        module = ParallelModule(recipe.layers(topology), topology, layout, seed=recipe.seed)
        tensors, checkpointer = list(module.global_tensors()), Checkpointer(None, communicator=self.ranks)
        unread = [rf"^{OPTIMIZER_PREFIX.replace('.', '[.]')}"]
        if not recipe.on_base:
            checkpointer.load(self.stored, tensors, allowed_unexpected=unread)
            return module
        of_base = {parameter.name for parameter in base_plan_of(self.architecture).parameters()}
        own = {name for name in self.stored.manifest.tensors if not name.startswith(OPTIMIZER_PREFIX)}
        module.follow_base()
        if self.base is not None:
            added = {tensor.key for tensor in tensors} - (of_base - own)
            checkpointer.load(self.base, tensors, allowed_unexpected=unread, optional=added, grown=list(recipe.grown))
            module.follow_base()
        trained = [tensor for tensor in tensors if tensor.key in own]
        checkpointer.load(self.stored, trained, allowed_unexpected=unread)
        return module
