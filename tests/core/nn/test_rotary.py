"""Rotary positions in both layouts, against rotations of complex numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaling.core.errors import LayoutError
from scaling.core.nn.rotary import RotaryEmbedding, rotary_frequencies
from scaling.core.nn.rotary_scaling import Unscaled, YarnScaling
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import random

DOUBLE = torch.float64
LAYOUTS = pytest.mark.parametrize("interleaved", [False, True])


@LAYOUTS
@pytest.mark.parametrize("dimensions", [2, 6, 8])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_pairs_are_turned_by_position_times_frequency(interleaved: bool, dimensions: int, base: float) -> None:
    rotary = RotaryEmbedding(dimensions, base=base, interleaved=interleaved)
    x, positions = random(2, 5, 3, 8, seed=1), torch.tensor([[0, 1, 2, 3, 4], [63, 0, 17, 17, 2]])
    turned = rotary(x, rotary.angles(positions, x.dtype))
    close(turned, dense.rotate(x, positions, dimensions, base=base, interleaved=interleaved))
    assert torch.equal(turned[..., dimensions:], x[..., dimensions:])
    assert torch.equal(turned[0, 0], x[0, 0])  # position 0 turns nothing


@given(interleaved=st.booleans(), query=st.integers(0, 900), distance=st.integers(0, 90), shift=st.integers(0, 1000))
def test_products_of_queries_and_keys_depend_on_their_distance_alone(
    interleaved: bool, query: int, distance: int, shift: int
) -> None:
    rotary = RotaryEmbedding(16, interleaved=interleaved)
    q, k = random(1, 1, 1, 16, seed=1), random(1, 1, 1, 16, seed=2)

    def score(at: int) -> torch.Tensor:
        angles = [rotary.angles(torch.tensor([[position]]), q.dtype) for position in (at + distance, at)]
        product: torch.Tensor = (rotary(q, angles[0]) * rotary(k, angles[1])).sum()
        return product

    # Angles are rounded to float32, up to 2^-14 of a radian at these positions; a wrong distance is off by far more.
    close(score(query), score(query + shift), tolerance=1e-3)


def test_the_two_layouts_are_one_another_with_features_permuted() -> None:
    halves, neighbours = (RotaryEmbedding(8, interleaved=flag) for flag in (False, True))
    x, positions = random(1, 9, 2, 8, seed=1), torch.arange(9).unsqueeze(0)
    order = torch.arange(8).view(2, 4).t().flatten()  # 0 4 1 5 2 6 3 7: halves to neighbours
    angles = halves.angles(positions, x.dtype)
    close(halves(x, angles)[..., order], neighbours(x[..., order], angles))


class Holder(nn.Module):
    """A layer that shares the rotation."""

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self.rotary = rotary
        self.weight = nn.Parameter(torch.ones(1))


@LAYOUTS
def test_angles_stay_wide_whatever_the_module_becomes(interleaved: bool) -> None:
    rotary = RotaryEmbedding(8, interleaved=interleaved)
    positions = torch.tensor([[8191]])
    before = rotary.angles(positions, torch.float64)
    parts = [Holder(rotary), Holder(rotary)]
    holder = nn.ModuleList(parts).to(torch.bfloat16).half().float().bfloat16()
    assert all(part.rotary is rotary for part in parts)
    assert list(holder.state_dict()) == ["0.weight", "1.weight"]
    assert list(holder.buffers()) == []
    again = rotary.angles(positions.clone(), torch.float64)
    for one, other in zip(before, again, strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)
    x = random(1, 1, 1, 8, seed=1, dtype=torch.bfloat16)
    turned = rotary(x, rotary.angles(positions, x.dtype))
    assert turned.dtype == torch.bfloat16
    expected = dense.rotate(x.double(), positions, 8, interleaved=interleaved)
    close(turned, expected, tolerance=2**-8)
    close(rotary(x.float(), rotary.angles(positions, torch.float32)), expected, tolerance=1e-6)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_angles_are_at_least_float32(interleaved: bool, dtype: torch.dtype) -> None:
    rotary = RotaryEmbedding(8, interleaved=interleaved)
    for table in rotary.angles(torch.arange(16).unsqueeze(0), dtype):
        assert table.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert table.shape == (1, 16, 1, 4)


def test_angles_follow_the_positions_to_their_device_and_back() -> None:
    rotary, other = RotaryEmbedding(8), RotaryEmbedding(8)
    positions = torch.arange(16).unsqueeze(0)
    before = rotary.angles(positions, torch.float64)
    for table in rotary.angles(positions.to("meta"), torch.float64):
        assert table.device.type == "meta"
        assert table.shape == before[0].shape
    for found, expected in zip(
        rotary.angles(positions, torch.float64), other.angles(positions, torch.float64), strict=True
    ):
        assert torch.equal(found, expected)


def test_the_layers_of_a_micro_batch_get_its_angles_once() -> None:
    rotary, positions = RotaryEmbedding(8), torch.tensor([[0, 1, 2], [0, 1, 0]])
    first = rotary.angles(positions, torch.float32)
    assert rotary.angles(positions, torch.float32) is first
    assert rotary.angles(positions, torch.bfloat16) is first  # turned in float32 too
    wide = rotary.angles(positions, torch.float64)
    assert wide[0].dtype == torch.float64
    assert rotary.angles(positions, torch.float64) is wide
    back = rotary.angles(positions, torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(back, first, strict=True))


def test_another_micro_batch_gets_angles_of_its_own_and_the_first_its_again() -> None:
    rotary = RotaryEmbedding(8)
    one, other = torch.tensor([[0, 1, 2]]), torch.tensor([[7, 0, 9]])
    x = random(1, 3, 2, 8, seed=1)
    for _ in range(2):
        for positions in (one, other):
            close(rotary(x, rotary.angles(positions, x.dtype)), dense.rotate(x, positions, 8))
    equal = one.clone()
    assert rotary.angles(equal, x.dtype) is not rotary.angles(one, x.dtype)
    close(rotary(x, rotary.angles(equal, x.dtype)), dense.rotate(x, one, 8))


def test_angles_are_not_kept_for_other_positions_at_the_same_address() -> None:
    rotary, x = RotaryEmbedding(8), random(1, 4, 1, 8, seed=1)
    for start in range(12):
        angles = rotary.angles(torch.arange(start, start + 4).unsqueeze(0), x.dtype)
        close(rotary(x, angles), dense.rotate(x, torch.arange(start, start + 4).unsqueeze(0), 8))


@LAYOUTS
def test_angles_are_position_times_frequency_rounded_to_float32_however_far(interleaved: bool) -> None:
    rotary = RotaryEmbedding(8, interleaved=interleaved)
    frequencies, _ = rotary_frequencies(Unscaled(), dimensions=8, base=10000.0, length=0)
    for position in (1, 4095, 131071):
        rounded = np.float32(position) * frequencies.numpy()
        assert rounded.dtype == np.float32
        angles = rotary.angles(torch.tensor([[position]]), DOUBLE)
        exact = rounded.astype(np.float64)
        for found, expected in zip(angles, (np.cos(exact), np.sin(exact)), strict=True):
            close(found.flatten(), torch.from_numpy(expected), tolerance=1e-15)
        for found, wide in zip(rotary.angles(torch.tensor([[position]]), torch.bfloat16), angles, strict=True):
            close(found, wide, tolerance=2**-23)


def tensors_of(rotary: RotaryEmbedding) -> Iterator[torch.Tensor]:
    for value in vars(rotary).values():
        held = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
        yield from (tensor for tensor in held if isinstance(tensor, torch.Tensor))


def test_nothing_is_kept_for_positions_that_no_token_has() -> None:
    rotary = RotaryEmbedding(64, length=131072)
    assert sum(tensor.numel() for tensor in tensors_of(rotary)) == 32
    for start in (0, 131000, 10**6):
        positions = torch.arange(start, start + 5).unsqueeze(0)
        rotary.angles(positions, torch.float32)
        assert sum(tensor.numel() for tensor in tensors_of(rotary)) == 32 + 2 * 5 * 32


def test_the_factor_of_a_scaling_multiplies_what_is_rotated_and_nothing_else() -> None:
    x, positions = random(1, 4, 2, 12, seed=1), torch.tensor([[0, 1, 2, 700]])
    plain, scaled = (
        RotaryEmbedding(8, scaling=YarnScaling(factor=1.0, trained_length=64, attention_factor=factor))
        for factor in (1.0, 1.25)
    )
    turned, more = (rotary(x, rotary.angles(positions, x.dtype)) for rotary in (plain, scaled))
    close(more[..., :8], turned[..., :8] * 1.25)
    assert torch.equal(more[..., 8:], x[..., 8:])


def test_positions_are_not_kept_alive() -> None:
    rotary, positions = RotaryEmbedding(8), torch.arange(4).unsqueeze(0)
    rotary.angles(positions, torch.float32)
    seen = weakref.ref(positions)
    del positions
    assert seen() is None


def test_angles_found_in_evaluation_serve_training_too() -> None:
    rotary, positions = RotaryEmbedding(8), torch.arange(4).unsqueeze(0)
    x = random(1, 4, 1, 8, seed=1).requires_grad_()
    with torch.no_grad():
        rotary.angles(positions, x.dtype)
    turned = rotary(x, rotary.angles(positions, x.dtype))
    backward(turned, turned.detach())
    close(gradient_of(x), x)  # a rotation turned back


@pytest.mark.parametrize("dimensions", [0, 1, 3, -2])
def test_dimensions_that_make_no_pairs_are_refused(dimensions: int) -> None:
    with pytest.raises(LayoutError, match=rf"rotary dimensions \({dimensions}\) must be even and at least 2"):
        RotaryEmbedding(dimensions)


@LAYOUTS
@pytest.mark.parametrize("dimensions", [6, 8])
def test_without_gradients_every_bit_is_the_same(interleaved: bool, dimensions: int) -> None:
    rotary = RotaryEmbedding(dimensions, interleaved=interleaved)
    x, positions = random(2, 5, 3, 8, seed=1, dtype=torch.float32), torch.arange(5).expand(2, 5) * 37
    with_gradients = rotary(x.requires_grad_(), rotary.angles(positions, x.dtype))
    with torch.no_grad():
        assert torch.equal(rotary(x, rotary.angles(positions, x.dtype)), with_gradients)
