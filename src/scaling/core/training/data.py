"""The data of a training: the endless stream and the finite evaluation set, on the ranks that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, final

from scaling.core.data.blended import BlendedDataset
from scaling.core.data.loader import DataLoader, evaluation_batches
from scaling.core.data.sampler import BatchGeometry, evaluation_steps
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.data.worker_losses import WorkerLosses
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from scaling.core.training.loading import Loading


@final
class TrainingData:
    """Training and evaluation micro-batches of this rank.

    Ranks that run neither the first nor the last layer read nothing; the others each read for themselves.
    """

    def __init__(
        self,
        training: BaseDataset[Any],
        evaluation: BaseDataset[Any] | None,
        *,
        seed: int,
        batch: TopologyConfig,
        topology: Topology,
        reads: bool,
        loading: Loading,
    ) -> None:
        self.geometry = BatchGeometry(
            batch.data_parallel_size, batch.micro_batch_size, batch.gradient_accumulation_steps
        )
        self._options: dict[str, Any] = {
            "data_parallel_size": batch.data_parallel_size,
            "data_parallel_rank": topology.index(Axis.DATA),
            "micro_batch_size": batch.micro_batch_size,
            "gradient_accumulation_steps": batch.gradient_accumulation_steps,
            "num_workers": loading.workers,
            "pin_memory": loading.pin_memory and topology.device.type == "cuda",
            "prefetch_factor": loading.prefetch_factor,
            "losses": WorkerLosses(),  # shared with all evaluations, each of which starts its own workers
            "device": topology.device,
        }
        self._reads = reads
        self._training_set, self._evaluation_set = training, evaluation
        self._loader = DataLoader(training, seed=seed, **self._options) if reads else None

    @property
    def training(self) -> Iterator[MicroBatch]:
        """Return the endless stream of training micro-batches."""
        return iter(()) if self._loader is None else self._loader

    def seek(self, consumed_samples: int) -> None:
        """Continue with the step that follows `consumed_samples` samples."""
        if self._loader is not None:
            self._loader.seek(consumed_samples)

    def wait(self) -> None:
        """Wait until the next training micro-batch is there, on ranks that read."""
        if self._loader is not None:
            self._loader.wait()

    def take_waited(self) -> float:
        """Return the seconds for which this rank waited for training micro-batches since the last call."""
        return 0.0 if self._loader is None else self._loader.take_waited()

    def epochs(self, consumed_samples: int) -> dict[str, float]:
        """Return the number of epochs of the training data, as metrics; for a mixture, one for each source."""
        if not isinstance(self._training_set, BlendedDataset):
            return {"training/epochs": consumed_samples / len(self._training_set)}
        counts = self._training_set.epochs(consumed_samples)
        names = [f"_{short}" for short in short_names(list(counts))] if len(counts) > 1 else [""]
        return {f"training/epochs{name}": count for name, count in zip(names, counts.values(), strict=True)}

    def evaluation_steps(self, limit: int | None = None) -> int:
        """Return how many global batches one evaluation takes, at most `limit`; the same on all ranks."""
        return (
            0
            if self._evaluation_set is None
            else evaluation_steps(len(self._evaluation_set), self.geometry, limit=limit)
        )

    def evaluation(self, limit: int | None = None) -> Iterator[MicroBatch]:
        """Return this rank's micro-batches of one pass over the evaluation set, of at most `limit` global batches."""
        if self._evaluation_set is None or not self._reads:
            return iter(())
        return evaluation_batches(self._evaluation_set, limit=limit, **self._options)

    def close(self) -> None:
        """Stop the workers."""
        if self._loader is not None:
            self._loader.close()


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of the paths: as few of them as distinguish all of the (different) paths."""
    parts = [PurePath(name).parts for name in names]
    for kept in range(1, max(map(len, parts), default=0)):
        short = ["/".join(path[-kept:]) for path in parts]
        if len(set(short)) == len(short):
            return short
    return list(names)
