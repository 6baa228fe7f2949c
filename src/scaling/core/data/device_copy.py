"""Copy micro-batches to a device; on a GPU in a separate stream, while earlier work is still running."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scaling.core.collectives.tree import map_tensors, to_device
from scaling.core.data.types import MicroBatch


@final
class DeviceCopy:
    """A copier of micro-batches to `device`. Pinned memory lets a copy to a GPU return before it is done."""

    def __init__(self, device: torch.device, *, pin_memory: bool) -> None:
        self._device = device
        self._pin_memory = pin_memory and device.type == "cuda"
        self._stream = _new_stream(device) if device.type == "cuda" else None

    def __call__(self, batch: MicroBatch) -> MicroBatch:
        """Return `batch` on the device; work launched on the current stream from now on may use it."""
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
            tensor.record_stream(current)  # allocated on the copy's stream, which does not know about its later use
            return tensor

        kept: MicroBatch = map_tensors(keep_until_used, batch)
        return kept

    def _moved(self, batch: MicroBatch) -> MicroBatch:
        moved: MicroBatch = to_device(batch, self._device)
        return moved


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
