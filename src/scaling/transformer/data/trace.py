"""Which samples a training step consumes: from the configuration, and what a run has noted. Nothing has to run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scaling.core import BatchGeometry, ConfigError, StorageError, items_of, order_of, positions_of
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextSample
from scaling.transformer.data.load import TextMixture

LARGEST_POSITION: Final = 1 << 62
METRICS_FILE: Final = "metrics.jsonl"
"""In logger.log_dir, a line for each step."""


@dataclass(frozen=True)
class ConsumedSample:
    """A sample, and where a run meets it."""

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

    `consumed_samples` is how many were consumed before it; left out, it follows from a batch size that never changed.

    Raises:
        ConfigError: There is no such step.
    """
    geometry = _geometry(config)
    _require_step(step)
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


def consumed_before(config: TransformerConfig, step: int) -> int:
    """Return how many samples were consumed before `step`, by the metrics of the run where it has left any.

    They know of batch sizes that were changed on resume. Where they end, the run is thought to go on as configured.

    Raises:
        ConfigError: There is no such step, or the run took it with another batch size than that of `config`.
        StorageError: The metrics cannot be read.
    """
    _require_step(step)
    size = _geometry(config).global_batch_size
    path = None if config.logger.log_dir is None else config.logger.log_dir / METRICS_FILE
    noted = {0: 0} if path is None else {0: 0, **_noted(path)}
    latest = max(known for known in noted if known < step)
    before = noted[latest] + (step - 1 - latest) * size
    following = min((known for known in noted if known >= step), default=None)
    if following is not None and noted[following] != before + (following - step + 1) * size:
        raise ConfigError(
            f"by {path}, {noted[latest]} samples were consumed up to step {latest} and {noted[following]} up to step "
            f"{following}, but this configuration takes {size} a step (topology.global_batch_size); use that of the "
            "run at this step, or say where the step begins with --consumed-samples"
        )
    return before


def _noted(path: Path) -> dict[int, int]:
    """Return the samples consumed up to each step in a run's metrics, of which the last line may be unfinished."""
    found: dict[int, int] = {}
    try:
        with path.open("rb") as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    metrics = json.loads(line)
                    found[int(metrics["step"])] = int(metrics["training/consumed_samples"])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; give --consumed-samples") from error
    return found


def _geometry(config: TransformerConfig) -> BatchGeometry:
    topology = config.topology
    return BatchGeometry(topology.data_parallel_size, topology.micro_batch_size, topology.gradient_accumulation_steps)


def _require_step(step: int) -> None:
    if step < 1:
        raise ConfigError(f"there is no step {step}; the first is 1")
