"""Feed-forward blocks against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scaling.core.nn.mlp import ParallelMLP, ParallelSwiGLUMLP
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.sharding import compare_layer
from tests.reference.worlds import connected, random


def compare_blocks(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 4, 12, seed=1)
        for bias in (True, False):
            for sequence_parallel in (False, True):
                options: dict[str, Any] = {
                    "topology": topology,
                    "bias": bias,
                    "dtype": torch.float64,
                    "sequence_parallel": sequence_parallel,
                }
                cut = 1 if sequence_parallel else None
                what = f"bias {bias}, sequence-parallel {sequence_parallel}:"
                plain, gated = ParallelMLP(12, 32, **options), ParallelSwiGLUMLP(12, 32, **options)
                compare_layer(plain, dense.mlp, x, topology, cut_input=cut, cut_output=cut, what=f"MLP, {what}")
                compare_layer(gated, dense.swiglu, x, topology, cut_input=cut, cut_output=cut, what=f"SwiGLU, {what}")


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_blocks_follow_their_formulas(world_size: int) -> None:
    if world_size == 1:
        compare_blocks(0, 1)
    else:
        run_distributed(compare_blocks, world_size)
