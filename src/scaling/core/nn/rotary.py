"""Rotary position embedding (Su et al., arXiv:2104.09864), in both layouts that checkpoints use."""

from __future__ import annotations

import math
import weakref
from typing import final

import torch
from torch import Tensor

from scaling.core.errors import LayoutError
from scaling.core.nn.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    Unscaled,
    YarnScaling,
)


@final
class RotaryEmbedding:
    """Rotate pairs of features of queries and keys by an angle proportional to the token's position.

    The angle of pair i is position * base^(-2i / dimensions), unless `scaling` changes that. `interleaved` False pairs
    feature i with i + dimensions / 2 (GPT-NeoX, Hugging Face Llama; the predecessor's `rotary`), True pairs neighbours
    (Meta's Llama; `rotary_complex`). Features beyond `dimensions` pass unchanged. `length` is the configured length of
    sequences, on which some scalings depend; 0 means that none is longer than those the model was trained for.

    Angles are rounded to float32 for every type, even float64: the published models were trained that way, and at far
    positions this rounding is larger than all others. The rotation is computed in at least float32. Nothing is kept for
    positions that do not occur in the present micro-batch, so one object serves sequences of any length, and all layers
    of a rank.
    """

    def __init__(
        self,
        dimensions: int,
        *,
        base: float = 10000.0,
        interleaved: bool = False,
        scaling: RotaryScaling = Unscaled(),  # noqa: B008  # frozen
        length: int = 0,
    ) -> None:
        self.dimensions = dimensions
        self.interleaved = interleaved
        frequencies, self._factor = rotary_frequencies(scaling, dimensions=dimensions, base=base, length=length)
        self._frequencies = {frequencies.device: frequencies}
        self._of: tuple[weakref.ref[Tensor], torch.dtype] | None = None
        self._angles: tuple[Tensor, Tensor] | None = None

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (cosine, sine) [b, s, 1, dimensions / 2] of int64 positions [b, s], ready for tensors of `dtype`.

        The last result is kept: the layers of a rank ask for the angles of one micro-batch one after another.
        """
        wide = dtype if dtype == torch.float64 else torch.float32
        if self._angles is None or self._of is None or self._of[0]() is not position_ids or self._of[1] != wide:
            self._angles = self.new_angles(position_ids, dtype)
            self._of = weakref.ref(position_ids), wide
        return self._angles

    def new_angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the same as `angles`, computed anew: a function of its input alone, as compiled code has to be."""
        angles = position_ids.float().unsqueeze(-1) * self._frequencies_on(position_ids.device)
        angles = angles.to(dtype if dtype == torch.float64 else torch.float32).unsqueeze(2)
        return angles.cos() * self._factor, angles.sin() * self._factor

    def keep_on(self, device: torch.device) -> None:
        """Keep a copy of the frequencies on a device from now on."""
        self._frequencies_on(device)

    def _frequencies_on(self, device: torch.device) -> Tensor:
        if device not in self._frequencies:
            self._frequencies[device] = self._frequencies[torch.device("cpu")].to(device)
        return self._frequencies[device]

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate `x` [b, s, heads, head_dim]."""
        cosine, sine = angles
        turned, passed = x[..., : self.dimensions], x[..., self.dimensions :]
        turned = turned.to(cosine.dtype)
        if self.interleaved:
            even, odd = turned[..., 0::2], turned[..., 1::2]
            rotated = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
        elif not torch.is_grad_enabled() and passed.shape[-1] == 0:
            return _rotated_halves(turned, cosine, sine).to(x.dtype)
        else:
            first, second = turned.chunk(2, dim=-1)
            rotated = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        rotated = rotated.to(x.dtype)
        return rotated if passed.shape[-1] == 0 else torch.cat([rotated, passed], dim=-1)


def _rotated_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return the halves rotated, bitwise as the general form does, with less memory touched. Without gradients."""
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = x.chunk(2, dim=-1)
    into, behind = rotated.chunk(2, dim=-1)
    torch.mul(first, cosine, out=into)
    into -= (product := second * sine)
    torch.mul(second, cosine, out=behind)
    behind += torch.mul(first, sine, out=product)
    return rotated


def rotary_frequencies(scaling: RotaryScaling, *, dimensions: int, base: float, length: int) -> tuple[Tensor, float]:
    """Return the angle of each pair per position, float32 [dimensions / 2] on the CPU, and a factor on cosine and sine.

    The order of the float32 operations is that of the Hugging Face library, so that the results are bitwise the same.
    `length` is the configured length of sequences.
    """
    if dimensions < 2 or dimensions % 2:
        raise LayoutError(f"rotary dimensions ({dimensions}) must be even and at least 2")
    match scaling:
        case Unscaled():
            return 1.0 / _periods(dimensions, base), 1.0
        case LinearScaling():
            return 1.0 / _periods(dimensions, base) / scaling.factor, 1.0
        case DynamicScaling():
            return 1.0 / _periods(dimensions, _grown_base(scaling, dimensions, base, length)), 1.0
        case YarnScaling():
            return _yarn(scaling, dimensions, base), _yarn_factor(scaling)
        case Llama3Scaling():
            return _llama3(scaling, 1.0 / _periods(dimensions, base)), 1.0
        case LongRopeScaling():
            return _longrope(scaling, dimensions, base, length), _longrope_factor(scaling, length)


def _periods(dimensions: int, base: float) -> Tensor:
    """Return base^(2i / dimensions) of each pair i: the number of positions that turn it by one radian."""
    exponents = torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions
    return torch.pow(base, exponents)


def _grown_base(scaling: DynamicScaling, dimensions: int, base: float, length: int) -> float:
    if dimensions == 2:
        raise LayoutError(
            "dynamic scaling changes the base, on which the one pair of 2 rotary dimensions does not depend"
        )
    stretched = max(length, scaling.trained_length)
    growth = scaling.factor * stretched / scaling.trained_length - (scaling.factor - 1)
    return float(base * growth ** (dimensions / (dimensions - 2)))


def _yarn(scaling: YarnScaling, dimensions: int, base: float) -> Tensor:
    if base <= 1:
        raise LayoutError(
            f"the rotary base ({base:g}) must be above 1 for yarn scaling, which divides by its logarithm"
        )

    def pair_of(turns: float) -> float:
        """Return the (fractional) number of the pair that makes `turns` turns in the trained length."""
        return dimensions * math.log(scaling.trained_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dimensions - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp
    pairs = torch.arange(dimensions // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((pairs - first) / (last - first)).clamp(0, 1)
    periods = _periods(dimensions, base)
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _yarn_factor(scaling: YarnScaling) -> float:
    def growth(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return growth(scaling.mscale) / growth(scaling.mscale_all_dim)
    return growth(1.0)


def _llama3(scaling: Llama3Scaling, frequencies: Tensor) -> Tensor:
    low, high, trained = scaling.low_freq_factor, scaling.high_freq_factor, scaling.trained_length
    wavelengths = 2 * math.pi / frequencies
    share = (trained / wavelengths - low) / (high - low)
    blended = (1 - share) * frequencies / scaling.factor + share * frequencies
    stretched = torch.where(wavelengths > trained / low, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < trained / high, frequencies, stretched)


def _longrope(scaling: LongRopeScaling, dimensions: int, base: float, length: int) -> Tensor:
    for name, divisors in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
        if len(divisors) != dimensions // 2:
            raise LayoutError(
                f"{name} has {len(divisors)} numbers, but {dimensions} rotary dimensions have {dimensions // 2} pairs; "
                "give a number for each pair"
            )
    divisors = scaling.long_factor if length > scaling.trained_length else scaling.short_factor
    return 1.0 / (torch.tensor(divisors, dtype=torch.float32, device="cpu") * _periods(dimensions, base))


def _longrope_factor(scaling: LongRopeScaling, length: int) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    factor = length / scaling.trained_length if scaling.factor is None else scaling.factor
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(scaling.trained_length))
