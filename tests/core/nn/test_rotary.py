"""Rotary positions in both layouts, against rotations of complex numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import LayoutError
from scaling.core.nn.rotary import RotaryEmbedding
from tests.reference import dense
from tests.reference.compare import close
from tests.reference.worlds import random

LAYOUTS = pytest.mark.parametrize("interleaved", [False, True])


@LAYOUTS
@pytest.mark.parametrize("dimensions", [2, 6, 8])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_pairs_are_turned_by_position_times_frequency(interleaved: bool, dimensions: int, base: float) -> None:
    rotary = RotaryEmbedding(dimensions, max_seq_length=64, base=base, interleaved=interleaved)
    x, positions = random(2, 5, 3, 8, seed=1), torch.tensor([[0, 1, 2, 3, 4], [63, 0, 17, 17, 2]])
    turned = rotary(x, rotary.angles(positions, x.dtype))
    close(turned, dense.rotate(x, positions, dimensions, base=base, interleaved=interleaved))
    assert torch.equal(turned[..., dimensions:], x[..., dimensions:])
    assert torch.equal(turned[0, 0], x[0, 0])  # position 0 turns nothing


@given(interleaved=st.booleans(), query=st.integers(0, 900), distance=st.integers(0, 90), shift=st.integers(0, 1000))
def test_products_of_queries_and_keys_depend_on_their_distance_alone(
    interleaved: bool, query: int, distance: int, shift: int
) -> None:
    rotary = RotaryEmbedding(16, max_seq_length=2048, interleaved=interleaved)
    q, k = random(1, 1, 1, 16, seed=1), random(1, 1, 1, 16, seed=2)

    def score(at: int) -> torch.Tensor:
        angles = [rotary.angles(torch.tensor([[position]]), q.dtype) for position in (at + distance, at)]
        product: torch.Tensor = (rotary(q, angles[0]) * rotary(k, angles[1])).sum()
        return product

    close(score(query), score(query + shift))


def test_the_two_layouts_are_one_another_with_features_permuted() -> None:
    halves, neighbours = (RotaryEmbedding(8, max_seq_length=9, interleaved=flag) for flag in (False, True))
    x, positions = random(1, 9, 2, 8, seed=1), torch.arange(9).unsqueeze(0)
    order = torch.arange(8).view(2, 4).t().flatten()  # 0 4 1 5 2 6 3 7: halves to neighbours
    angles = halves.angles(positions, x.dtype)
    close(halves(x, angles)[..., order], neighbours(x[..., order], angles))


@LAYOUTS
def test_tables_stay_wide_whatever_the_module_becomes(interleaved: bool) -> None:
    rotary = RotaryEmbedding(8, max_seq_length=8192, interleaved=interleaved)
    holder = torch.nn.ModuleList([rotary]).to(torch.bfloat16).half().float().bfloat16()
    assert rotary.cosine.dtype == rotary.sine.dtype == torch.float64
    assert list(holder.state_dict()) == []
    positions = torch.tensor([[8191]])
    x = random(1, 1, 1, 8, seed=1, dtype=torch.bfloat16)
    turned = rotary(x, rotary.angles(positions, x.dtype))
    assert turned.dtype == torch.bfloat16
    expected = dense.rotate(x.double(), positions, 8, interleaved=interleaved)
    close(turned, expected, tolerance=2**-8)


def test_moving_to_another_device_moves_the_tables() -> None:
    rotary = RotaryEmbedding(8, max_seq_length=16).to("meta")
    assert rotary.cosine.device.type == rotary.sine.device.type == "meta"


@LAYOUTS
def test_growing_extends_the_tables_and_keeps_what_was_there(interleaved: bool) -> None:
    rotary, long = (RotaryEmbedding(8, max_seq_length=n, interleaved=interleaved) for n in (4, 40))
    before = rotary.cosine
    rotary.grow(3)
    assert rotary.cosine is before
    rotary.grow(40)
    assert torch.equal(rotary.cosine, long.cosine)
    assert torch.equal(rotary.sine, long.sine)


@pytest.mark.parametrize("dimensions", [0, 1, 3, -2])
def test_dimensions_that_make_no_pairs_are_refused(dimensions: int) -> None:
    with pytest.raises(LayoutError, match=rf"rotary dimensions \({dimensions}\) must be even and at least 2"):
        RotaryEmbedding(dimensions, max_seq_length=8)
