"""A data set as the engine sees it: an indexed collection of samples, and micro-batches collated from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass on one data-parallel rank.

    `inputs` goes to the first layer, `targets` to the loss. Each is a tensor, or a tuple, dict or dataclass of tensors.
    """

    inputs: Any
    targets: Any


class BaseDataset(ABC, Generic[Sample]):
    """A finite, indexed collection of samples. Item `index` is the same on every rank, in every process, for ever."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return one sample, 0 <= index < len(self)."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make one micro-batch.

        `positions[i]` is the place of sample i in the order of the whole run (0 = the first sample ever trained on):
        the same in every layout, and the key of the sample's dropout masks. Where `valid[i]` is False the sample only
        fills up the last batch of an evaluation and must not count: its weight in the loss is zero.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short digest of the data's identity, compared when a run is resumed."""
