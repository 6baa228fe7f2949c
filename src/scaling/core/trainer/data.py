"""The trainer's data: the training stream and the finite validation set, on the ranks that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, final

from scaling.core.data.blended import BlendedDataset
from scaling.core.data.loader import DataLoader, evaluation_batches
from scaling.core.data.sampler import BatchGeometry, evaluation_steps
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig


@final
class TrainingData:
    """Training and validation micro-batches of this rank.

    Ranks that run neither the first nor the last layer read nothing; the others each read for themselves.
    """

    def __init__(
        self,
        training: BaseDataset[Any],
        validation: BaseDataset[Any] | None,
        *,
        config: TrainerConfig,
        batch: TopologyConfig,
        topology: Topology,
        reads: bool,
    ) -> None:
        self.validation = validation
        self.geometry = BatchGeometry(
            batch.data_parallel_size, batch.micro_batch_size, batch.gradient_accumulation_steps
        )
        self._options: dict[str, Any] = {
            "data_parallel_size": batch.data_parallel_size,
            "data_parallel_rank": topology.index(Axis.DATA),
            "micro_batch_size": batch.micro_batch_size,
            "gradient_accumulation_steps": batch.gradient_accumulation_steps,
            "num_workers": config.dataloader_num_workers,
            "pin_memory": config.dataloader_pin_memory and topology.device.type == "cuda",
            "prefetch_factor": config.dataloader_prefetch_factor,
            "device": topology.device,
        }
        self._limit = config.eval_iterations
        self._reads = reads
        self._dataset = training
        self._training = DataLoader(training, seed=config.seed, **self._options) if reads else None

    @property
    def training(self) -> Iterator[MicroBatch]:
        """Return the endless stream of training micro-batches."""
        return iter(()) if self._training is None else self._training

    def seek(self, consumed_samples: int) -> None:
        """Go on with the step that follows `consumed_samples` samples."""
        if self._training is not None:
            self._training.seek(consumed_samples)

    def epochs(self, consumed_samples: int) -> dict[str, float]:
        """Return how often the training data have been gone through, as metrics; a mixture by its sources."""
        if not isinstance(self._dataset, BlendedDataset):
            return {"training/epochs": consumed_samples / len(self._dataset)}
        counts = self._dataset.epochs(consumed_samples)
        names = [f"_{short}" for short in short_names(list(counts))] if len(counts) > 1 else [""]
        return {f"training/epochs{name}": count for name, count in zip(names, counts.values(), strict=True)}

    def evaluation_steps(self) -> int:
        """Return how many global batches one evaluation takes; the same on all ranks."""
        return (
            0 if self.validation is None else evaluation_steps(len(self.validation), self.geometry, limit=self._limit)
        )

    def evaluation(self) -> Iterator[MicroBatch]:
        """Return this rank's micro-batches of one pass over the validation set."""
        if self.validation is None or not self._reads:
            return iter(())
        return evaluation_batches(self.validation, limit=self._limit, **self._options)

    def close(self) -> None:
        """Stop the workers."""
        if self._training is not None:
            self._training.close()


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of paths: as few of them as tell all of the (different) paths apart."""
    parts = [PurePath(name).parts for name in names]
    for kept in range(1, max((len(one) for one in parts), default=0)):
        short = ["/".join(one[-kept:]) for one in parts]
        if len(set(short)) == len(short):
            return short
    return list(names)
