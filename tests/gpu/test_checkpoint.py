"""Checkpoints of tensors on a GPU: copied without stopping it, loaded back into it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from scaling.core.boxes import Box, GlobalTensor, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.share import plan_share
from scaling.core.checkpoint.staging import Staging

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def held(count: int = 8, size: int = 2**20) -> list[GlobalTensor]:
    views = [torch.full((2, size), float(index), device="cuda") for index in range(count)]
    return [GlobalTensor(f"w{index}", (2, size), [(whole((2, size)), view)]) for index, view in enumerate(views)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_saved_are_the_values_of_the_moment(asynchronous: bool, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, asynchronous=asynchronous)
    for step in range(3):
        tensors = held()
        for tensor in tensors:
            tensor.parts[0][1].add_(100 * step)
        checkpointer.save(step, tensors, {})
        for tensor in tensors:
            tensor.parts[0][1].fill_(-1)
    checkpointer.wait()
    for step in range(3):
        found = [torch.zeros(2, 1000, dtype=torch.bfloat16, device="cuda") for _ in range(8)]
        box = Box((0, 77), (2, 1000))
        wanted = [GlobalTensor(f"w{index}", (2, 2**20), [(box, view)]) for index, view in enumerate(found)]
        Checkpointer(None).load(tmp_path / f"global_step{step}", wanted)
        assert [float(view.min()) for view in found] == [float(view.max()) for view in found]
        assert [float(view.min()) for view in found] == [100.0 * step + index for index in range(8)]


def test_staging_does_not_wait_for_the_gpu() -> None:
    share = plan_share(held(16, 2**22), 2**40)
    staging = Staging()
    staging.copy(share)  # allocates the buffers
    staging.wait()
    product = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(40):
        product = (product @ product).clamp(-1, 1)
    started = time.monotonic()
    copied = staging.copy(share)
    returned = time.monotonic() - started
    assert all(piece.load().is_pinned() for piece in copied.pieces)
    staging.wait()
    arrived = time.monotonic() - started
    assert returned < arrived / 2
    assert [float(piece.load()[1, 5]) for piece in copied.pieces] == [
        float(piece.load()[1, 5]) for piece in share.pieces
    ]
