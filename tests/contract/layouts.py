"""The layouts that have to be the same training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayoutCase:
    """A layout: sizes of the axes, how the batch is cut, and everything else that must not matter."""

    pipe: int
    data: int
    model: int
    micro_batch_size: int
    topology: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return self.pipe * self.data * self.model

    @property
    def settings(self) -> dict[str, Any]:
        """Return the topology section."""
        return {
            "pipe_parallel_size": self.pipe,
            "data_parallel_size": self.data,
            "model_parallel_size": self.model,
            "micro_batch_size": self.micro_batch_size,
            **self.topology,
        }

    def __str__(self) -> str:
        extras = [f"{key}={value}" for key, value in {**self.topology, **self.optimizer}.items()]
        return " ".join([f"{self.pipe}x{self.data}x{self.model} micro {self.micro_batch_size}", *extras])


SP = {"sequence_parallel": True}
GPIPE = {"pipe_schedule": "gpipe"}
LAYERS = {"activation_checkpointing_type": "every_layer"}
SELECTIVE = {"activation_checkpointing_type": "selective"}
STAGES = {"activation_checkpointing_type": "every_pipe_stage"}
BALANCED = {"pipe_partition_method": "balanced"}
SIMULATED = {"pipe_partition_method": "simulated"}
NETWORK = {"shared_memory": False}
ZERO = {"zero": True}
SMALL_BUCKETS = {"zero": True, "allreduce_bucket_size": 500}


def interleaved(chunks: int) -> dict[str, Any]:
    return {"pipe_schedule": "interleaved_1f1b", "pipe_chunks_per_rank": chunks}


def cut(*boundaries: int) -> dict[str, Any]:
    return {"pipe_partition_overwrite": list(boundaries)}


Case = LayoutCase
LAYOUTS: Mapping[str, tuple[LayoutCase, ...]] = {
    "llama": (  # embedding, 3 blocks, norm, head
        Case(1, 1, 1, 1),
        Case(1, 1, 1, 3, LAYERS),
        Case(1, 1, 1, 8, STAGES, ZERO),
        Case(1, 1, 2, 12, {**SP, **SELECTIVE}),
        Case(1, 2, 1, 4, NETWORK),
        Case(1, 2, 1, 3, {}, ZERO),
        Case(1, 1, 2, 12),
        Case(1, 1, 2, 12, {**SP, **LAYERS}),
        Case(2, 1, 1, 3),
        Case(2, 1, 1, 6, GPIPE),
        Case(2, 1, 1, 6, {**interleaved(3), **LAYERS}),
        Case(1, 3, 1, 2, {}, SMALL_BUCKETS),
        Case(3, 1, 1, 4, cut(0, 1, 5, 6)),
        Case(1, 4, 1, 3, {}, {"allreduce_bucket_size": 500}),
        Case(1, 1, 4, 24, SP),
        Case(4, 1, 1, 4, STAGES),
        Case(2, 2, 1, 3, interleaved(2), ZERO),
        Case(2, 1, 2, 12, SP),
        Case(1, 2, 2, 12, {**SP, **NETWORK}, SMALL_BUCKETS),
        Case(6, 1, 1, 4),
        Case(2, 3, 1, 2, cut(0, 5, 6), ZERO),
        Case(1, 1, 8, 24),
        Case(2, 2, 2, 6, SP, ZERO),
        Case(2, 2, 2, 6, {**SP, **interleaved(2), **LAYERS}, SMALL_BUCKETS),
        Case(1, 4, 2, 6, {}, ZERO),
    ),
    "gpt": (  # embedding, 2 blocks, norm, head; dropout
        Case(1, 1, 1, 2, LAYERS),
        Case(1, 1, 1, 3, SELECTIVE),
        Case(2, 1, 2, 6, {**SELECTIVE, **SP}, ZERO),
        Case(1, 2, 1, 6, STAGES, ZERO),
        Case(1, 1, 2, 24, NETWORK),
        Case(1, 1, 2, 12, SP),
        Case(2, 1, 1, 4, {**BALANCED, **NETWORK}),
        Case(2, 1, 1, 3, {**interleaved(2), **SIMULATED}),
        Case(3, 1, 1, 6, GPIPE),
        Case(1, 2, 2, 12, SP, ZERO),
        Case(2, 1, 2, 6, {**LAYERS, **GPIPE}),
        Case(4, 1, 1, 3, cut(0, 1, 2, 4, 5)),
        Case(1, 1, 4, 24),
        Case(5, 1, 1, 8),
        Case(2, 1, 4, 12, SP),
        Case(4, 2, 1, 3, {}, ZERO),
        Case(2, 2, 2, 6, {**SP, **STAGES, **NETWORK}, SMALL_BUCKETS),
    ),
    "mqa": (  # embedding, 1 block, norm, head; dropout
        Case(1, 1, 1, 4, STAGES),
        Case(2, 1, 1, 6, interleaved(2)),
        Case(1, 1, 2, 24, SP),
        Case(1, 2, 2, 4, {}, ZERO),
        Case(2, 1, 2, 6, {**SP, **LAYERS}),
        Case(1, 1, 4, 12, SP),
        Case(4, 1, 1, 6, GPIPE),
        Case(1, 1, 8, 24, SP),
        Case(2, 2, 2, 6, interleaved(2), ZERO),
        Case(4, 1, 2, 6, SP),
    ),
}
