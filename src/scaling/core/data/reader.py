"""Read one micro-batch, as a worker process does, and carry its errors to the training process with their class."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from scaling.core import faults
from scaling.core.data.blended import BlendedDataset
from scaling.core.data.sampler import Order, items_of
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.errors import DataError, DataRefusedError, ScalingError, StorageError


@final
@dataclass(frozen=True)
class ReadFailure:
    """An error in a worker, as data: raised there, it would arrive wrapped in a message and traceback of PyTorch."""

    category: type[ScalingError]
    message: str
    worker_traceback: str

    def error(self) -> ScalingError:
        """Return the error to raise in the training process."""
        error = self.category(self.message)
        error.__cause__ = RuntimeError(f"in a data worker:\n{self.worker_traceback}")
        return error


@final
class MicroBatchReader(TorchDataset["MicroBatch | ReadFailure"]):
    """The micro-batches of a data set in a given order, indexed by the range of positions that they hold."""

    def __init__(self, dataset: BaseDataset[Any], order: Order, *, end: int | None = None) -> None:
        self._dataset = dataset
        self._order = order
        self._end = end
        """Samples from this position on only fill up the last batch."""

    def __getitem__(self, positions: range) -> MicroBatch | ReadFailure:
        try:
            return self.read(positions)
        except ScalingError as error:
            if get_worker_info() is None:
                raise
            return ReadFailure(type(error), str(error), traceback.format_exc())

    def read(self, positions: range) -> MicroBatch:
        """Return the samples at `positions`, collated; an error names the sample."""
        where = f"positions {positions.start} to {positions.stop - 1} of the run"
        with _named(f"the micro-batch at {where} cannot be read"):
            faults.point("data.fetch")
            items = items_of(self._order, positions)
        samples = []
        for position, item in zip(positions, items, strict=True):
            with _named(f"{_describe(self._dataset, item)} (position {position} of the run) cannot be read"):
                samples.append(self._dataset[item])
        with _named(f"the samples at {where} cannot be collated"):
            valid = [self._end is None or position < self._end for position in positions]
            return self._dataset.collate(samples, positions, valid)


def ignore_keyboard(worker: int) -> None:
    """Leave Ctrl-C and SIGUSR1, which reach workers too, to the training process: it needs its workers to finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn any error into one of this library whose message begins with `what`, and keep its exit status."""
    try:
        yield
    except ScalingError as error:
        category = type(error) if type(error) in (StorageError, DataRefusedError) else DataError
        raise category(f"{what}: {error}") from error
    except OSError as error:
        raise StorageError(f"{what}: {type(error).__name__}: {error}") from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        source = f"{Path(place.filename).name}, line {place.lineno}"
        raise DataError(f"{what}: {type(error).__name__}: {error} ({source})") from error


def _describe(dataset: BaseDataset[Any], item: int) -> str:
    if isinstance(dataset, BlendedDataset):
        source, item = dataset.locate(item)
        return f"sample {item} of data set {dataset.names[source]}"
    return f"sample {item} of the {type(dataset).__name__}"
