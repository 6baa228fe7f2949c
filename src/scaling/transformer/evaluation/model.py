"""EvaluatedModel: a checkpoint, of a whole model or of what was trained on a base, loaded in any layout."""

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
    ConfigError,
    ParallelModule,
    Recipe,
    StoreCommunicator,
    StoredCheckpoint,
    Topology,
    TopologyConfig,
    find_base,
    folder_meant,
    is_on_base,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.choices import Precision
from scaling.transformer.config.model_plan import base_plan_of
from scaling.transformer.stored_model import architecture_of, tokenizer_file_beside

_REMEDY: Final = (
    "put it back there, or merge the two (scaling checkpoint merge BASE ADAPTER DST) and name the merged one"
)


@final
@dataclass(frozen=True)
class EvaluatedModel:
    """What there is to load, and what it says of itself. Every method is collective: all ranks."""

    stored: StoredCheckpoint
    base: StoredCheckpoint | None
    """None: of no base, or one of random weights."""
    architecture: TransformerArchitectureConfig
    settings: Mapping[str, Any]
    """All that the checkpoint has."""
    tokenizer_file: Path | None
    """That which lies beside the checkpoint, or else beside its base."""
    checkpointer: Checkpointer

    @classmethod
    def find(cls, path: Path, topology: Topology, *, precision: str | None = None) -> Self:
        """Find the newest checkpoint of a directory, or a step folder, its base, and the tokenizer beside them.

        `precision` is the type that weights are converted to; None: as they were trained.

        Raises:
            CheckpointError: There is none, or its base is gone, or the tokenizer is another one.
        """
        store = topology.store
        ranks = None if store is None else StoreCommunicator(store, topology.rank, topology.layout.world_size)
        checkpointer = Checkpointer(None, communicator=ranks)
        stored = checkpointer.find(folder_meant(path), weights_only=True).require()
        architecture, settings = architecture_of(stored)
        reference = BaseReference.of(stored.manifest.scalars) if is_on_base(stored.manifest) else None
        base = None if reference is None else find_base(reference, None, ranks, remedy=_REMEDY)
        if precision is not None:
            architecture = architecture.model_copy(update={"precision": precision_named(precision)})
        beside = (
            tokenizer_file_beside(found.path.absolute(), settings) for found in (stored, base) if found is not None
        )
        tokenizer_file = next((file for file in beside if file is not None), None)
        return cls(stored, base, architecture, settings, tokenizer_file, checkpointer)

    def load(self, recipe: Recipe, topology: Topology, layout: TopologyConfig) -> ParallelModule:
        """Build this rank's part of the model that a recipe of this architecture describes, and load it."""
        module = ParallelModule(recipe.layers(topology), topology, layout, seed=recipe.seed)
        tensors = list(module.global_tensors())
        unread = [rf"^{OPTIMIZER_PREFIX.replace('.', '[.]')}"]
        if not recipe.on_base:
            self.checkpointer.load(self.stored, tensors, allowed_unexpected=unread)
            return module
        of_base = {parameter.name for parameter in base_plan_of(self.architecture).parameters()}
        own = {name for name in self.stored.manifest.tensors if not name.startswith(OPTIMIZER_PREFIX)}
        module.follow_base()
        if self.base is not None:
            added = {tensor.key for tensor in tensors} - (of_base - own)
            self.checkpointer.load(
                self.base, tensors, allowed_unexpected=unread, optional=added, grown=list(recipe.grown)
            )
            module.follow_base()
        trained = [tensor for tensor in tensors if tensor.key in own]
        self.checkpointer.load(self.stored, trained, allowed_unexpected=unread)
        return module


def precision_named(name: str) -> Precision:
    """Return the type of this name; `ConfigError` where there is none."""
    known = [precision.value for precision in Precision]
    if name not in known:
        raise ConfigError(f"precision ({name}) does not exist; choose one of {', '.join(known)}")
    return Precision(name)
