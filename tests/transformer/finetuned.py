"""A base and what a fine-tuning on it would have saved, written without training: with methods at random values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scaling.core import BaseReference, Checkpointer, CheckpointReader, StoredCheckpoint
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.inference.module import TransformerInferenceModule

VOCABULARY = 29
ARCHITECTURE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_num_kv_heads": 2,
    "mlp_type": "swiglu",
    "mlp_factor": 2,
    "sequence_length": 32,
    "weight_tying": False,
}


def section(**changes: Any) -> TransformerArchitectureConfig:
    """Return the architecture of a small model."""
    return TransformerArchitectureConfig.from_dict({**ARCHITECTURE, **changes})


def found(folder: Path) -> StoredCheckpoint:
    """Return the newest checkpoint."""
    return Checkpointer(None).find(folder).require()


def randomise(model: TransformerInferenceModule, seed: int, names: set[str] | None = None) -> None:
    """Give weights random values: those of these names, or all."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.module.global_tensors():
        for _, view in tensor.parts if names is None or tensor.key in names else ():
            around = 1.0 if tensor.key.endswith((".scale", ".magnitude", "norm.weight", "layernorm.weight")) else 0.0
            view.copy_(around + 0.3 * torch.randn(view.shape, generator=generator))


def settings_of(config: TransformerArchitectureConfig) -> dict[str, Any]:
    """Return what a checkpoint says of its configuration."""
    return {"version": "0", "transformer_architecture": config.as_dict(), "trainer": {"seed": 42}, "data": {}}


def write_base(folder: Path, *, step: int = 3, seed: int = 1, **changes: Any) -> StoredCheckpoint:
    """Write a whole model."""
    config = section(**changes)
    model = TransformerInferenceModule(config)
    with torch.no_grad():
        randomise(model, seed)
    Checkpointer(folder).save(step, model.module.global_tensors(), {"config": settings_of(config)})
    return found(folder)


def write_adapter(
    folder: Path,
    base: StoredCheckpoint,
    methods: dict[str, Any],
    *,
    seed: int = 2,
    also: tuple[str, ...] = (),
    **changes: Any,
) -> TransformerInferenceModule:
    """Write what was trained on a base, `also` tensors of the base itself; return the model with its edits."""
    stored: Any = base.manifest.scalars["config"]
    architecture = {**stored["transformer_architecture"], "vocab_file": None, **methods, **changes}
    config = TransformerArchitectureConfig.from_dict(architecture)
    model = TransformerInferenceModule(config, seed=42)
    known = {parameter.name for parameter in base_plan_of(config).parameters()}
    trained = ({parameter.name for parameter in plan_of(config).parameters()} - known) | set(also)
    tensors = list(model.module.global_tensors())
    with torch.no_grad(), CheckpointReader(base) as reader:
        for tensor in tensors:
            if tensor.key in known:
                shape = base.manifest.tensors[tensor.key].shape
                tensor.parts[0][1][: shape[0]] = reader.read(tensor.key)
        model.module.follow_base()
        randomise(model, seed, trained)
    scalars = {"config": settings_of(config), "base": BaseReference.to(base).as_dict()}
    Checkpointer(folder).save(7, [tensor for tensor in tensors if tensor.key in trained], scalars)
    return model
