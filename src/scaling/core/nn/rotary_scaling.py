"""Ways to stretch rotary positions beyond the length that a model was trained for, as plain descriptions.

`rotary_frequencies` turns them into numbers. Two depend on a length, `DynamicScaling` and `LongRopeScaling`: they use
the configured length of sequences, never the current batch, so that a row's result does not depend on its neighbours,
and the keys in a cache stay valid when the next token comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Unscaled:
    """Frequencies as they follow from the base."""


@dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by `factor`: positions are interpolated (Chen et al., arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """A base that grows with the configured length beyond `trained_length` (NTK-aware; arXiv:2309.00071, appendix B.1).

    Up to `trained_length` nothing changes.
    """

    factor: float
    trained_length: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """High frequencies as they are, low ones divided by `factor`, a ramp between them (YaRN, arXiv:2309.00071)."""

    factor: float
    trained_length: int
    beta_fast: float = 32.0
    """The ramp begins at the pair that makes this many turns in `trained_length` positions."""
    beta_slow: float = 1.0
    """The ramp ends at the pair that makes this many turns."""
    attention_factor: float | None = None
    """Factor of cosine and sine; None: from the mscales, or else 1 + 0.1 ln(factor)."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """Where both are given (and not 0), cosine and sine have the factor (1 + 0.1 mscale ln(factor)) / (1 + 0.1
    mscale_all_dim ln(factor))."""
    truncate: bool = True
    """Widen the ramp to whole numbers of pairs."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths times `factor`, short ones as they are, a blend between them (Llama 3.1, arXiv:2407.21783)."""

    factor: float
    low_freq_factor: float
    """Wavelengths above trained_length / low_freq_factor are long."""
    high_freq_factor: float
    """Wavelengths below trained_length / high_freq_factor are short."""
    trained_length: int


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """A divisor for each frequency, and others beyond `trained_length` (LongRoPE, arXiv:2402.13753)."""

    short_factor: tuple[float, ...]
    """Divisors, one for each pair, where the configured length is at most `trained_length`."""
    long_factor: tuple[float, ...]
    """Divisors where the configured length is longer."""
    trained_length: int
    factor: float | None = None
    """How many times longer the stretched sequences are; None: the configured length over `trained_length`."""
    attention_factor: float | None = None
    """Factor of cosine and sine; None: sqrt(1 + ln(factor) / ln(trained_length)), or 1 if `factor` is at most 1."""


RotaryScaling: TypeAlias = Unscaled | LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling
"""How the frequencies of a rotation are stretched, if they are."""
