"""Global tensors in memory-mapped files: the processes of one layout hand their numbers to those of another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import final
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from scaling.core.boxes import Box, GlobalTensor, whole
from scaling.core.verify.deviation import Array, Deviation, in_model_order, measure


def as_array(tensor: Tensor) -> Array:
    """Return the values as float64, which holds every element of every narrower type exactly."""
    values: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return values


@final
class SharedTensors:
    """A folder with one file per tensor: its elements in float64, in row-major order.

    Ranks write the parts they own, all at the same time and without communication; readers must wait until all have
    written. No file is kept open.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, tensors: Iterable[GlobalTensor]) -> None:
        """Write the parts that this process owns."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for tensor in tensors:
            if tensor.owned and any(box.size for box, _ in tensor.parts):
                file = self._map(tensor.key, tensor.shape, create=True)
                for box, values in tensor.parts:
                    file[box.slices(whole(tensor.shape))] = as_array(values)

    def read(self, key: str, shape: tuple[int, ...], box: Box) -> Array:
        """Return a part of a tensor."""
        return np.array(self._map(key, shape)[box.slices(whole(shape))])

    def compare(self, tensors: Iterable[GlobalTensor], *, rank: int) -> list[Deviation]:
        """Return the deviations of all tensors that this process holds, owned or not, from those written."""
        return [
            measure(
                tensor.key,
                rank,
                ((box, as_array(values), self.read(tensor.key, tensor.shape, box)) for box, values in tensor.parts),
            )
            for tensor in tensors
        ]

    def digest(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Return the SHA-256 over names, shapes and elements of all tensors, sorted by layer and name."""
        sha256 = hashlib.sha256()
        for key in in_model_order(sorted(shapes)):
            sha256.update(f"{key} {list(shapes[key])}\n".encode())
            sha256.update(self.read(key, shapes[key], whole(shapes[key])).tobytes())
        return sha256.hexdigest()

    def _map(self, key: str, shape: tuple[int, ...], *, create: bool = False) -> Array:
        if not whole(shape).size:
            return np.empty(shape, np.float64)
        path = self.directory / quote(key, safe="")
        if create:
            # Every owner does this; after the first, nothing changes.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(descriptor, 8 * whole(shape).size)
            finally:
                os.close(descriptor)
        mapped: Array = np.memmap(path, np.float64, "r+" if create else "r", shape=(whole(shape).size,))
        return mapped.reshape(shape)
