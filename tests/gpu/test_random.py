"""What is drawn on a GPU: keyed masks are those of the CPU to the bit, streams go on where they were."""

from __future__ import annotations

import pytest
import torch

from scaling.core.nn.dropout import Dropout
from scaling.core.nn.rotary import RotaryEmbedding
from scaling.core.topology.layout import Coordinate
from scaling.core.topology.rng import RngTracker
from tests.reference.compare import close
from tests.reference.worlds import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_keyed_masks_are_the_same_on_every_device(probability: float) -> None:
    dropout = Dropout(probability, seed=1, site="here")
    x, samples = torch.ones(4, 64, 256), torch.tensor([0, 5, 2**40, 2**62])
    assert torch.equal(dropout(x.to(GPU), samples.to(GPU)).cpu(), dropout(x, samples))
    options = {"heads": range(3, 7), "queries": 16, "keys": 32}
    masks = [dropout.scores_mask(where, **options) for where in (samples, samples.to(GPU))]  # type: ignore[arg-type]
    assert torch.equal(masks[0], masks[1].cpu())


def draw() -> torch.Tensor:
    return torch.rand(4, device=GPU)


def test_streams_go_on_where_they_were_and_leave_torchs_generator_alone() -> None:
    whole, interrupted = (RngTracker(Coordinate(), GPU) for _ in range(2))
    with whole.stream("sharded"):
        expected = [draw(), draw()]
    torch.manual_seed(3)
    outside = [draw(), draw()]
    torch.manual_seed(3)
    found, between = [], []
    for _ in range(2):
        with interrupted.stream("sharded"):
            found.append(draw())
        with interrupted.stream("replicated"):
            draw()
        between.append(draw())
    assert not torch.equal(found[0], found[1])
    for drawn, reference in ((found, expected), (between, outside)):
        assert all(torch.equal(one, other) for one, other in zip(drawn, reference, strict=True))
    state = interrupted.state()
    with interrupted.stream("sharded"):
        first = draw()
    with interrupted.replaying(state), interrupted.stream("sharded"):
        assert torch.equal(draw(), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotary_positions_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    rotary = RotaryEmbedding(32)
    x, positions = random(2, 16, 4, 64, seed=1).to(dtype), torch.randint(4096, (2, 16))
    angles = rotary.angles(positions, dtype)
    expected = rotary(x, angles)
    moved = rotary.angles(positions.to(GPU), dtype)
    for found, reference in zip(moved, angles, strict=True):
        assert found.device == GPU
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(found.cpu(), reference, tolerance=torch.finfo(found.dtype).eps)
    close(rotary(x.to(GPU), moved).cpu(), expected, tolerance=torch.finfo(dtype).eps)
