"""A training step as a configuration schedules it, in virtual time, for any layout."""

from __future__ import annotations

from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import GPipe, Interleaved1F1B, OneFOneB, Schedule
from scaling.core.pipeline.simulate import Simulation, simulate
from scaling.core.topology.config import TopologyConfig


def schedule_of(config: TopologyConfig) -> Schedule:
    """Return the training schedule a configuration asks for."""
    match config.pipe_schedule.value:
        case "gpipe":
            return GPipe()
        case "1f1b":
            return OneFOneB()
        case _:
            return Interleaved1F1B(config.pipe_chunks_per_rank)


def planned_step(config: TopologyConfig, *, most_micro_batches: int | None = None) -> Simulation:
    """Return one training step of all pipe ranks, simulated: 1 for a stage's forward pass, 2 for its backward pass.

    Pure, and without torch. If the step has more than `most_micro_batches` (None: no limit), only that many are
    simulated, rounded down to a multiple of the pipe ranks, but at least one for each rank: enough for a picture.
    """
    ranks, micro_batches = config.pipe_parallel_size, config.gradient_accumulation_steps
    if most_micro_batches is not None and micro_batches > most_micro_batches:
        micro_batches = min(micro_batches, max(1, most_micro_batches // ranks) * ranks)
    return simulate(lower_all(schedule_of(config), ranks, micro_batches))
