"""Data sets for tests, in a module of their own so that worker processes import nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from scaling.core.data.types import BaseDataset, MicroBatch


class Labels(BaseDataset[str]):
    """`length` samples that say which data set they come from and which they are."""

    def __init__(self, label: str, length: int) -> None:
        self.label = label
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> str:
        return f"{self.label}{index}"

    def collate(self, samples: Sequence[str], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        return MicroBatch(inputs=list(samples), targets=torch.tensor(list(positions)))

    def fingerprint(self) -> str:
        return f"{self.label}{self.length}"


class Numbers(BaseDataset[int]):
    """Samples 0, 1, 2 ...; the micro-batch says which, where and whether they count, and which process read them."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, samples: Sequence[int], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        inputs = {"items": torch.tensor(samples), "process": torch.tensor(os.getpid())}
        return MicroBatch(inputs, (torch.tensor(list(positions)), torch.tensor(valid)))

    def fingerprint(self) -> str:
        return str(self.length)


class Broken(Numbers):
    """Sample 5 cannot be read, in the way that `error` says."""

    def __init__(self, length: int, error: Exception) -> None:
        super().__init__(length)
        self.error = error

    def __getitem__(self, index: int) -> int:
        if index == 5:
            raise self.error
        return index


class Deadly(Numbers):
    """Reading sample 5 kills the process: always, or once, if there is a file in which to remember it."""

    def __init__(self, length: int, memory: Path | None = None) -> None:
        super().__init__(length)
        self.memory = memory

    def __getitem__(self, index: int) -> int:
        if index == 5 and not (self.memory and self.memory.exists()):
            if self.memory:
                self.memory.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Unsendable(Numbers):
    """Collates what no other process can be given, as when shared memory or file descriptors run out."""

    def collate(self, samples: Sequence[int], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        return MicroBatch(torch.ones(1, requires_grad=True) * 2, torch.zeros(1))
