"""Read micro-batches ahead of time in worker processes, and replace workers that die."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections import deque
from collections.abc import Iterator
from itertools import chain
from multiprocessing.context import BaseContext
from typing import Any, Final, final

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset as TorchDataset

from scaling.core.data.packed import Packed
from scaling.core.data.reader import MicroBatchReader, ReadFailure, ignore_keyboard
from scaling.core.data.types import MicroBatch
from scaling.core.data.worker import leave_with_parent
from scaling.core.data.worker_losses import WorkerLosses
from scaling.core.errors import DataError

_abandoned: Final[list[object]] = []
"""Workers that may be stuck for good. Torch waits five seconds for each when an iterator is deleted, so they are
kept."""


@final
class _Positions:
    """Positions still to be read. Those requested from workers count as unread until they are delivered."""

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
class _Worker(TorchDataset["Packed"]):
    """The work of a worker: read a micro-batch and pack it."""

    def __init__(self, reader: MicroBatchReader) -> None:
        self._reader = reader

    def __getitem__(self, positions: range) -> Packed:
        return Packed.of(self._reader[positions])


@final
class ReadAhead(Iterator[MicroBatch]):
    """The micro-batches at given positions in order, read in this process or ahead of time in workers.

    A worker that dies (out of memory, or by a signal meant for the whole job) is replaced: since a micro-batch follows
    from its positions, lost ones are simply read again. `losses` limits how often that may happen. If Ctrl-C
    interrupted a wait for workers, `close` does not wait for them either: they end with this process.
    """

    def __init__(
        self,
        reader: MicroBatchReader,
        *,
        num_workers: int,
        prefetch_factor: int | None,
        losses: WorkerLosses | None = None,
    ) -> None:
        self._reader = reader
        self._losses = losses or WorkerLosses()
        self._num_workers = num_workers
        self._prefetch_factor = prefetch_factor
        self._positions = _Positions()
        self._pool: TorchDataLoader[Any] | None = None
        self._results: Iterator[Any] | None = None
        self._is_broken_off = False

    def start(self, positions: Iterator[range]) -> None:
        """Continue with the micro-batches at `positions`, and drop those that were read ahead."""
        self._positions.asked.clear()
        self._positions.rest = positions
        self._results = None

    def __next__(self) -> MicroBatch:
        while True:
            try:
                if self._results is None:
                    self._results = self._ask_workers()
                result = next(self._results)
                if isinstance(result, Packed):
                    result = result.unpack()
                break
            except (RuntimeError, OSError, EOFError) as error:  # a dead worker: readers raise ScalingError only
                self._replace_workers(error)
            except KeyboardInterrupt:
                self._is_broken_off = self._num_workers > 0
                raise
        self._positions.asked.popleft()
        self._losses.note_delivery()
        if isinstance(result, ReadFailure):
            raise result.error()
        batch: MicroBatch = result
        return batch

    def close(self) -> None:
        """Stop the workers."""
        if self._is_broken_off:
            _abandoned.append(self._results)
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
            _Worker(self._reader) if self._num_workers else self._reader,
            sampler=self._positions,
            batch_size=None,  # a position range is one item, which the reader collates
            collate_fn=_unchanged,
            num_workers=self._num_workers,
            prefetch_factor=self._prefetch_factor if self._num_workers else None,
            persistent_workers=self._num_workers > 0,
            multiprocessing_context=_worker_context() if self._num_workers else None,
            worker_init_fn=_begin_as_worker,
            generator=torch.Generator(),  # otherwise it draws from the generator of the training process
        )

    def _replace_workers(self, error: Exception) -> None:
        if self._num_workers == 0:
            raise error
        error.__traceback__ = None  # its frames would keep the remaining workers
        self.close()
        self._losses.note_death(error)


def _worker_context() -> BaseContext:
    """Return a way to start processes that is safe beside threads (fork is not) and imports PyTorch only once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin_as_worker(worker: int) -> None:
    """Prepare a worker process: it leaves Ctrl-C to the training process, and does not outlive it."""
    ignore_keyboard(worker)
    leave_with_parent()


def _unchanged(result: Any) -> Any:
    return result
