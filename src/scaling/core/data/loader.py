"""Feed a rank its micro-batches: read ahead by worker processes, copied to the device during the computation."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any, final

import torch

from scaling.core.data.device_copy import DeviceCopy
from scaling.core.data.read_ahead import ReadAhead
from scaling.core.data.reader import MicroBatchReader
from scaling.core.data.sampler import (
    BatchGeometry,
    EvenOrder,
    evaluation_positions,
    evaluation_steps,
    order_of,
    training_positions,
)
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.data.worker_losses import WorkerLosses
from scaling.core.errors import DataError


@final
class DataLoader(Iterator[MicroBatch]):
    """The endless stream of one rank's micro-batches. Its whole state is `consumed_samples`.

    Ranks with the same `data_parallel_rank` get the same micro-batches; nothing is communicated. `prefetch_factor` is
    the number of micro-batches that each worker reads ahead. Loaders that share `losses` count their dead workers
    together.
    """

    def __init__(
        self,
        dataset: BaseDataset[Any],
        *,
        seed: int,
        data_parallel_size: int,
        data_parallel_rank: int,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        consumed_samples: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        losses: WorkerLosses | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008  a torch.device is immutable
    ) -> None:
        self.geometry = BatchGeometry(data_parallel_size, micro_batch_size, gradient_accumulation_steps)
        self._data_parallel_rank = data_parallel_rank
        order = order_of(dataset, key=(seed,), shuffle=shuffle)
        self._batches = ReadAhead(
            MicroBatchReader(dataset, order), num_workers=num_workers, prefetch_factor=prefetch_factor, losses=losses
        )
        self._copy = DeviceCopy(device, pin_memory=pin_memory)
        self._next: MicroBatch | None = None
        self._waited = 0.0
        self.seek(consumed_samples)

    @property
    def consumed_samples(self) -> int:
        """Return how many samples all ranks have consumed in completed steps, however many were read ahead."""
        steps = self._yielded // self.geometry.gradient_accumulation_steps
        return self._start + steps * self.geometry.global_batch_size

    def seek(self, consumed_samples: int) -> None:
        """Continue with the step that follows `consumed_samples` samples."""
        if consumed_samples < 0:
            raise DataError(f"consumed_samples is {consumed_samples}; a run cannot have consumed less than nothing")
        self._start = consumed_samples
        self._yielded = 0
        self._next = None
        self._batches.start(
            training_positions(consumed_samples, self.geometry, data_parallel_rank=self._data_parallel_rank)
        )

    def wait(self) -> None:
        """Wait until the next micro-batch is there."""
        if self._next is None:
            began = time.perf_counter()
            self._next = self._copy(next(self._batches))
            self._waited += time.perf_counter() - began

    def take_waited(self) -> float:
        """Return the seconds for which the host waited for micro-batches since the last call.

        Without workers, the host reads the samples itself; that counts as waiting, too.
        """
        waited, self._waited = self._waited, 0.0
        return waited

    def __next__(self) -> MicroBatch:
        self.wait()
        assert self._next is not None
        batch, self._next = self._next, None
        self._yielded += 1
        return batch

    def close(self) -> None:
        """Stop the workers. The next request for a micro-batch starts them again."""
        self._batches.close()


def evaluation_batches(
    dataset: BaseDataset[Any],
    *,
    data_parallel_size: int,
    data_parallel_rank: int,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    limit: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int | None = None,
    losses: WorkerLosses | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008  a torch.device is immutable
) -> Generator[MicroBatch, None, None]:
    """Yield one rank's micro-batches of one pass over `dataset`, in its order: every sample once, in every layout.

    `evaluation_steps` returns the number of steps, of `gradient_accumulation_steps` micro-batches each; `limit` is the
    largest number of steps. If that is too small for all samples, those taken are spread evenly over the data set, so
    that each source of a blend is represented. The last step is padded with samples that are not valid.
    """
    geometry = BatchGeometry(data_parallel_size, micro_batch_size, gradient_accumulation_steps)
    taken = evaluation_steps(len(dataset), geometry, limit=limit) * geometry.global_batch_size
    order = EvenOrder(len(dataset), min(taken, len(dataset)))
    reader = MicroBatchReader(dataset, order, end=len(dataset))
    copy = DeviceCopy(device, pin_memory=pin_memory)
    batches = ReadAhead(reader, num_workers=num_workers, prefetch_factor=prefetch_factor, losses=losses)
    batches.start(evaluation_positions(len(dataset), geometry, data_parallel_rank=data_parallel_rank, limit=limit))
    try:
        for batch in batches:
            yield copy(batch)
    finally:
        batches.close()
