"""Micro-batches move to the device with every tensor in them."""

from __future__ import annotations

import pytest
import torch

from scaling.core.data.device_copy import DeviceCopy
from scaling.core.data.types import MicroBatch


def test_on_a_cpu_nothing_is_copied() -> None:
    batch = MicroBatch(torch.ones(2), {"labels": torch.zeros(2)})
    assert DeviceCopy(torch.device("cpu"), pin_memory=True)(batch) is batch


@pytest.mark.parametrize("pin_memory", [False, True])  # only for copies to a GPU: no other kind of device needs it
def test_every_tensor_is_moved_and_all_else_kept(pin_memory: bool) -> None:
    batch = MicroBatch((torch.ones(2), "name"), {"labels": torch.zeros(3), "count": 4})
    moved = DeviceCopy(torch.device("meta"), pin_memory=pin_memory)(batch)
    assert moved.inputs[0].device.type == moved.targets["labels"].device.type == "meta"
    assert moved.targets["labels"].shape == (3,)
    assert (moved.inputs[1], moved.targets["count"]) == ("name", 4)
