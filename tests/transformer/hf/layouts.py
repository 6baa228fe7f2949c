"""What each process of a layout does with imported checkpoints; no `transformers`, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core import Axis, Checkpointer, MicroBatch, ParallelModule
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.io import TextInputs
from scaling.transformer.model import layer_specs
from tests.core.trainer.regression import communicator_of
from tests.reference.worlds import connected, topology_config

LAYOUT: Final[dict[str, Any]] = {
    "pipe": 2,
    "data": 2,
    "model": 2,
    "sequence_parallel": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
}
ROWS: Final[int] = LAYOUT["data"]
"""A row of tokens for each replica."""

SAVED: Final = "saved"

Part = tuple[int, int, Tensor]
"""Row, place in the group of the model axis, which cuts the vocabulary, and logits [s, v] of that part of it."""


def logits_of_rows(rank: int, world_size: int, folders: Sequence[Path], tokens: Tensor) -> list[list[Part]]:
    """Return this rank's parts of the logits of `tokens` [ROWS, s] for each checkpoint; none before the last stage.

    The weights of each are saved anew by this layout, beside its folder, in one named `SAVED`.
    """
    with connected(**LAYOUT) as topology:
        checkpointer = Checkpointer(None, communicator=communicator_of(topology))
        row, place, found = topology.index(Axis.DATA), topology.index(Axis.MODEL), []
        positions = torch.arange(tokens.shape[1])[None]
        batch = MicroBatch(TextInputs(tokens[[row]], positions, None, torch.tensor([row])), None)
        for folder in folders:
            stored = checkpointer.find(folder, weights_only=True).require()
            config: Any = stored.manifest.scalars["config"]
            architecture = TransformerArchitectureConfig.from_dict(config["transformer_architecture"])
            specs = layer_specs(architecture, topology, seed=0)
            module = ParallelModule(specs, topology, topology_config(**LAYOUT), seed=0)
            checkpointer.load(stored, module.global_tensors())
            anew = Checkpointer(folder.with_name(SAVED), communicator=communicator_of(topology))
            anew.save(1, module.global_tensors(), stored.manifest.scalars)
            with torch.no_grad():
                outputs = module.forward_step(iter([batch]))
                found.append([(row, place, output.logits().squeeze(0)) for output in outputs])
        return found
