"""Each way to stretch rotary positions, against its formula in plain floats."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scaling.core.errors import LayoutError
from scaling.core.nn.rotary import RotaryEmbedding, rotary_frequencies
from scaling.core.nn.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    Unscaled,
    YarnScaling,
)

BASE, DIMENSIONS = 500000.0, 64
PAIRS = range(DIMENSIONS // 2)
PLAIN = [BASE ** (-2 * pair / DIMENSIONS) for pair in PAIRS]


def agree(scaling: RotaryScaling, expected: list[float], factor: float = 1.0, *, length: int = 0) -> None:
    """Assert frequencies to a few roundings of float32, and the factor."""
    found, found_factor = rotary_frequencies(scaling, dimensions=DIMENSIONS, base=BASE, length=length)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    assert found.tolist() == pytest.approx(expected, rel=2e-6, abs=0)
    assert found_factor == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize("length", [0, 100000])
def test_unscaled_and_linear_frequencies_depend_on_no_length(length: int) -> None:
    agree(Unscaled(), PLAIN, length=length)
    agree(LinearScaling(4.0), [frequency / 4 for frequency in PLAIN], length=length)


def test_dynamic_scaling_grows_the_base_beyond_the_trained_length_and_changes_nothing_up_to_it() -> None:
    scaling = DynamicScaling(factor=2.0, trained_length=1024)
    for length in (0, 1000, 1024):
        agree(scaling, PLAIN, length=length)
    for length in (1025, 4096):
        base = BASE * (2 * length / 1024 - 1) ** (DIMENSIONS / (DIMENSIONS - 2))
        agree(scaling, [base ** (-2 * pair / DIMENSIONS) for pair in PAIRS], length=length)


def ramp(first: float, last: float) -> list[float]:
    """Return yarn frequencies of factor 8, stretched from pair `first` to pair `last`."""
    share = [min(max((pair - first) / (last - first), 0.0), 1.0) for pair in PAIRS]
    return [part * plain / 8 + (1 - part) * plain for part, plain in zip(share, PLAIN, strict=True)]


def test_yarn_keeps_fast_pairs_stretches_slow_ones_and_blends_between_them() -> None:
    def pair_of(turns: float, trained: int) -> float:
        return DIMENSIONS * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(BASE))

    scaling, factor = YarnScaling(factor=8.0, trained_length=4096), 1 + 0.1 * math.log(8)
    first, last = pair_of(32, 4096), pair_of(1, 4096)
    assert (math.floor(first), math.ceil(last)) == (7, 16)
    agree(scaling, ramp(7, 16), factor)
    agree(replace(scaling, truncate=False), ramp(first, last), factor)
    agree(replace(scaling, beta_fast=16.0, beta_slow=2.0), ramp(9, 15), factor)
    long = replace(scaling, trained_length=2**31, truncate=False)  # the slowest pair, too, turns often
    agree(long, ramp(pair_of(32, 2**31), pair_of(1, 2**31)), factor)
    short = replace(scaling, trained_length=20)  # the ramp would begin before the first pair
    agree(short, ramp(0, math.ceil(pair_of(1, 20))), factor)
    agree(replace(scaling, trained_length=6), ramp(0, 0.001), factor)  # a step: no pair but the first is kept
    assert pair_of(1e-9, 4096) > DIMENSIONS - 1
    agree(replace(scaling, beta_slow=1e-9), ramp(7, DIMENSIONS - 1), factor)


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (YarnScaling(factor=8.0, trained_length=4096, attention_factor=0.5, mscale=2.0, mscale_all_dim=3.0), 0.5),
        (
            YarnScaling(factor=8.0, trained_length=4096, mscale=2.0, mscale_all_dim=3.0),
            (1 + 0.2 * math.log(8)) / (1 + 0.3 * math.log(8)),
        ),
        (YarnScaling(factor=8.0, trained_length=4096, mscale=2.0), 1 + 0.1 * math.log(8)),
        (YarnScaling(factor=8.0, trained_length=4096, mscale=2.0, mscale_all_dim=0.0), 1 + 0.1 * math.log(8)),
        (YarnScaling(factor=0.5, trained_length=4096), 1.0),
        (YarnScaling(factor=1.0, trained_length=4096, mscale=2.0, mscale_all_dim=3.0), 1.0),
        (LongRopeScaling(short_factor=(1.0,) * 32, long_factor=(2.0,) * 32, trained_length=4096, factor=1.0), 1.0),
    ],
)
def test_the_factor_of_cosine_and_sine(scaling: RotaryScaling, factor: float) -> None:
    _, found = rotary_frequencies(scaling, dimensions=DIMENSIONS, base=BASE, length=0)
    assert found == pytest.approx(factor, rel=1e-15)


def test_llama_3_keeps_short_waves_stretches_long_ones_and_blends_between_them() -> None:
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, trained_length=8192)
    expected, kinds = [], set()
    for frequency in PLAIN:
        turns = 8192 * frequency / (2 * math.pi)  # in the trained length
        share = min(max((turns - 1) / 3, 0.0), 1.0)
        kinds.add((share > 0) + (share == 1))
        expected.append(share * frequency + (1 - share) * frequency / 8)
    assert kinds == {0, 1, 2}
    agree(scaling, expected)


def test_longrope_divides_each_frequency_by_its_number_for_the_configured_length() -> None:
    short, long = (tuple(1.0 + step * pair for pair in PAIRS) for step in (0.125, 0.75))
    scaling = LongRopeScaling(short_factor=short, long_factor=long, trained_length=4096, factor=32.0)
    factor = math.sqrt(1 + math.log(32) / math.log(4096))
    for length, divisors in ((0, short), (4096, short), (4097, long), (131072, long)):
        expected = [frequency / divisor for frequency, divisor in zip(PLAIN, divisors, strict=True)]
        agree(scaling, expected, factor, length=length)
        agree(replace(scaling, attention_factor=1.5), expected, 1.5, length=length)
        own = math.sqrt(1 + math.log(length / 4096) / math.log(4096)) if length > 4096 else 1.0
        agree(replace(scaling, factor=None), expected, own, length=length)


@pytest.mark.parametrize(
    ("scaling", "dimensions", "base", "complaint"),
    [
        (DynamicScaling(factor=2.0, trained_length=8), 2, 1e4, "the one pair of 2 rotary dimensions"),
        (YarnScaling(factor=2.0, trained_length=8), 8, 1.0, r"the rotary base \(1\) must be above 1"),
        (
            LongRopeScaling(short_factor=(1.0,) * 4, long_factor=(1.0,) * 3, trained_length=8),
            8,
            1e4,
            "long_factor has 3 numbers, but 8 rotary dimensions have 4 pairs",
        ),
        (
            LongRopeScaling(short_factor=(1.0,) * 8, long_factor=(1.0,) * 4, trained_length=8),
            8,
            1e4,
            "short_factor has 8 numbers, but 8 rotary dimensions have 4 pairs",
        ),
    ],
)
def test_what_a_scaling_cannot_stretch_is_refused(
    scaling: RotaryScaling, dimensions: int, base: float, complaint: str
) -> None:
    with pytest.raises(LayoutError, match=complaint):
        RotaryEmbedding(dimensions, base=base, scaling=scaling)


def test_a_rotation_follows_the_configured_length_and_not_the_batch_at_hand() -> None:
    scaling = DynamicScaling(factor=2.0, trained_length=16)
    short, long = (RotaryEmbedding(8, scaling=scaling, length=length) for length in (16, 64))
    alone, beside = torch.tensor([[3, 5]]), torch.tensor([[3, 5], [60, 63]])
    for rotary in (short, long):
        for one, both in zip(rotary.angles(alone, torch.float64), rotary.angles(beside, torch.float64), strict=True):
            assert torch.equal(one, both[:1])
    assert not torch.equal(short.angles(alone, torch.float64)[0], long.angles(alone, torch.float64)[0])
