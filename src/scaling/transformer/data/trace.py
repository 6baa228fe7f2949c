"""Find the samples that a training step consumes, from the configuration alone: nothing has to run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from scaling.core import BatchGeometry, ConfigError, items_of, order_of, positions_of
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextSample
from scaling.transformer.data.consumed import require_step
from scaling.transformer.data.load import TextMixture

LARGEST_POSITION: Final = 1 << 62


@dataclass(frozen=True)
class ConsumedSample:
    """A sample, and where a run consumes it."""

    position: int
    """In the order of the whole run, from 0."""
    micro_batch: int
    data_parallel_rank: int
    index: int
    """In its data set."""
    sample: TextSample


def samples_of_step(
    config: TransformerConfig, dataset: TextMixture, step: int, *, consumed_samples: int | None = None
) -> Iterator[ConsumedSample]:
    """Yield the samples of the global batch of `step`, which counts from 1 as in the metrics, in order.

    `consumed_samples` is the number consumed before the step; without it, the batch size is assumed never to have
    changed.

    Raises:
        ConfigError: There is no such step.
    """
    require_step(step)
    topology = config.topology
    geometry = BatchGeometry(
        topology.data_parallel_size, topology.micro_batch_size, topology.gradient_accumulation_steps
    )
    before = (step - 1) * geometry.global_batch_size if consumed_samples is None else consumed_samples
    if before + geometry.global_batch_size > LARGEST_POSITION:
        raise ConfigError(f"step {step} is beyond every run: its samples would be at positions from {before} on")
    order = order_of(dataset, key=(config.trainer.seed,), shuffle=True)
    for micro_batch in range(geometry.gradient_accumulation_steps):
        for rank in range(geometry.data_parallel_size):
            positions = positions_of(before, geometry, micro_batch=micro_batch, data_parallel_rank=rank)
            for position, item in zip(positions, items_of(order, positions), strict=True):
                _, index = dataset.locate(item)
                yield ConsumedSample(position, micro_batch, rank, index, dataset[item])
