"""Feed a rank its micro-batches: read ahead by worker processes, copied to the device beside the computation."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import warnings
from collections import deque
from collections.abc import Iterator
from itertools import chain
from multiprocessing.context import BaseContext
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader as TorchDataLoader

from scaling.core.collectives.tree import map_tensors, to_device
from scaling.core.data.reader import MicroBatchReader, ReadFailure, ignore_keyboard
from scaling.core.data.sampler import (
    BatchGeometry,
    EpochOrder,
    evaluation_positions,
    order_of,
    training_positions,
)
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.errors import DataError, ScalingError

Sample = TypeVar("Sample")

_logger = logging.getLogger(__name__)


@final
class DataLoader(Iterator[MicroBatch]):
    """The endless stream of one rank's micro-batches. Its whole state is `consumed_samples`.

    Ranks with the same `data_parallel_rank` get the same micro-batches; nothing is communicated. `prefetch_factor` is
    the number of micro-batches that each worker reads ahead.
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
        device: torch.device = torch.device("cpu"),  # noqa: B008  a torch.device is immutable
    ) -> None:
        self.geometry = BatchGeometry(data_parallel_size, micro_batch_size, gradient_accumulation_steps)
        self._data_parallel_rank = data_parallel_rank
        order = order_of(dataset, key=(seed,), shuffle=shuffle)
        self._batches = _ReadAhead(
            MicroBatchReader(dataset, order), num_workers=num_workers, prefetch_factor=prefetch_factor
        )
        self._copy = _DeviceCopy(device, pin_memory=pin_memory)
        self.seek(consumed_samples)

    @property
    def consumed_samples(self) -> int:
        """How many samples all ranks have consumed in completed steps, however many were read ahead."""
        steps = self._yielded // self.geometry.gradient_accumulation_steps
        return self._start + steps * self.geometry.global_batch_size

    def seek(self, consumed_samples: int) -> None:
        """Go on with the step that follows `consumed_samples` samples."""
        if consumed_samples < 0:
            raise DataError(f"consumed_samples is {consumed_samples}; a run cannot have consumed less than nothing")
        self._start = consumed_samples
        self._yielded = 0
        self._batches.start(
            training_positions(consumed_samples, self.geometry, data_parallel_rank=self._data_parallel_rank)
        )

    def __next__(self) -> MicroBatch:
        batch = self._copy(next(self._batches))
        self._yielded += 1
        return batch

    def close(self) -> None:
        """Stop the workers. The next micro-batch, if one is asked for, starts them again."""
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
    device: torch.device = torch.device("cpu"),  # noqa: B008  a torch.device is immutable
) -> Iterator[MicroBatch]:
    """Yield one rank's micro-batches of one pass over `dataset`, in its order: every sample once, in every layout.

    `evaluation_steps` says how many steps of `gradient_accumulation_steps` micro-batches these are; `limit` is their
    largest number. The last step is filled up with samples that are not valid.
    """
    geometry = BatchGeometry(data_parallel_size, micro_batch_size, gradient_accumulation_steps)
    reader = MicroBatchReader(dataset, EpochOrder(len(dataset), key=(), shuffle=False), end=len(dataset))
    copy = _DeviceCopy(device, pin_memory=pin_memory)
    batches = _ReadAhead(reader, num_workers=num_workers, prefetch_factor=prefetch_factor)
    batches.start(evaluation_positions(len(dataset), geometry, data_parallel_rank=data_parallel_rank, limit=limit))
    try:
        for batch in batches:
            yield copy(batch)
    finally:
        batches.close()


@final
class _Positions:
    """Positions still to be read. Those which workers were asked for count as unread until they have delivered."""

    def __init__(self) -> None:
        self.asked: deque[range] = deque()
        self.rest: Iterator[range] = iter(())

    def __iter__(self) -> Iterator[range]:
        self.rest = chain(tuple(self.asked), self.rest)
        self.asked.clear()
        for positions in self.rest:
            self.asked.append(positions)
            yield positions


@final
class _ReadAhead(Iterator[MicroBatch]):
    """Reads the micro-batches at given positions in order, in this process or ahead of time in workers.

    A worker that dies (out of memory, or by a signal meant for the whole job) is replaced: since a micro-batch follows
    from its positions, what was lost is simply read again.
    """

    def __init__(self, reader: MicroBatchReader, *, num_workers: int, prefetch_factor: int | None) -> None:
        self._reader = reader
        self._num_workers = num_workers
        self._prefetch_factor = prefetch_factor
        self._positions = _Positions()
        self._pool: TorchDataLoader[Any] | None = None
        self._results: Iterator[Any] | None = None
        self._workers_have_delivered = True

    def start(self, positions: Iterator[range]) -> None:
        """Go on with the micro-batches at `positions`, and forget what was read ahead."""
        self._positions.asked.clear()
        self._positions.rest = positions
        self._results = None

    def __next__(self) -> MicroBatch:
        while True:
            try:
                if self._results is None:
                    self._results = self._ask_workers()
                result = next(self._results)
                break
            except RuntimeError as error:  # how PyTorch reports a dead worker; readers raise ScalingError only
                self._replace_workers(error)
        self._positions.asked.popleft()
        self._workers_have_delivered = True
        if isinstance(result, ReadFailure):
            raise result.error()
        batch: MicroBatch = result
        return batch

    def close(self) -> None:
        """Stop the workers."""
        self._results = None
        self._pool = None  # its iterator stops the workers when the last reference goes

    def _ask_workers(self) -> Iterator[Any]:
        if self._pool is None:
            self._pool = self._new_pool()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PyTorch's advice about pickling; ours follows
                return iter(self._pool)  # starts the workers, or makes them drop what they had been asked for
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise DataError(
                f"the data set cannot be sent to worker processes: {error}; define its class at the top level of a "
                "module, open files in it on first use, or set num_workers to 0"
            ) from error

    def _new_pool(self) -> TorchDataLoader[Any]:
        return TorchDataLoader(
            self._reader,
            sampler=self._positions,
            batch_size=None,  # a position range is one item, which the reader collates
            collate_fn=_unchanged,
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch_factor if self._num_workers else None,
            persistent_workers=self._num_workers > 0,
            multiprocessing_context=_worker_context() if self._num_workers else None,
            worker_init_fn=ignore_keyboard,
            generator=torch.Generator(),  # otherwise it draws from the generator of the training process
        )

    def _replace_workers(self, error: RuntimeError) -> None:
        self.close()
        if self._num_workers == 0:
            raise error
        if not self._workers_have_delivered:
            raise ScalingError(
                f"data workers die as soon as they start ({error}); with too little memory (or /dev/shm) lower "
                "num_workers or prefetch_factor, and set num_workers to 0 to see an error of the data set itself"
            ) from error
        _logger.warning("a data worker died (%s); new workers go on where it stopped", error)
        self._workers_have_delivered = False


@final
class _DeviceCopy:
    """Brings micro-batches to a device; on a GPU on a stream of its own, while earlier work is still running."""

    def __init__(self, device: torch.device, *, pin_memory: bool) -> None:
        self._device = device
        self._pin_memory = pin_memory and device.type == "cuda"
        self._stream = _new_stream(device) if device.type == "cuda" else None

    def __call__(self, batch: MicroBatch) -> MicroBatch:
        if self._device.type == "cpu":
            return batch
        if self._pin_memory:
            batch = map_tensors(Tensor.pin_memory, batch)
        if self._stream is None:
            return self._moved(batch)
        with torch.cuda.stream(self._stream):
            batch = self._moved(batch)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)

        def keep_until_used(tensor: Tensor) -> Tensor:
            tensor.record_stream(current)  # allocated on the copy's stream, which knows nothing of its later use
            return tensor

        kept: MicroBatch = map_tensors(keep_until_used, batch)
        return kept

    def _moved(self, batch: MicroBatch) -> MicroBatch:
        moved: MicroBatch = to_device(batch, self._device)
        return moved


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch's constructor has no annotations


def _worker_context() -> BaseContext:
    """Return a way to start processes that is safe beside threads (fork is not) and imports PyTorch only once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _unchanged(result: Any) -> Any:
    return result
