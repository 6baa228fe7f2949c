"""Kinds of attention layers, and the rotations they may have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scaling.core import (
    BaseConfig,
    ConfigFamily,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Problem,
    RotaryScaling,
    Unscaled,
    YarnScaling,
)


class RotaryConfig(ConfigFamily):
    """Wavelengths of rotary positions, by their type."""

    kind_key: ClassVar[str] = "type"
    default_kind: ClassVar[str | None] = "default"

    base: float | None = Field(default=None, gt=1)
    """Base of the wavelengths. null: rotary_embedding_base."""

    def pinned(self, sequence_length: int) -> RotaryConfig:
        """Return the same rotation with each null replaced by its value in a model of this sequence length."""
        return self

    @abstractmethod
    def scaling(self, sequence_length: int) -> RotaryScaling | None:
        """Return how the wavelengths are changed, None where nothing is rotated."""


TrainedLength = Annotated[int | None, Field(ge=1)]
Stretch = Annotated[float, Field(ge=1, le=1_000_000)]
Turns = Annotated[float, Field(ge=1e-6, le=1_000_000)]
Divisors = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


class UnscaledRotaryConfig(RotaryConfig):
    """Rotation as originally published."""

    type: Literal["default"] = "default"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""

    def scaling(self, sequence_length: int) -> RotaryScaling:
        """Return no change."""
        return Unscaled()


class NoRotaryConfig(RotaryConfig):
    """No rotation."""

    type: Literal["none"] = "none"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""

    def scaling(self, sequence_length: int) -> None:
        """Return None, since nothing is rotated."""
        return None


class LinearRotaryConfig(RotaryConfig):
    """All wavelengths are longer by one factor (arXiv:2306.15595)."""

    type: Literal["linear"] = "linear"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""
    factor: Stretch
    """Factor by which all wavelengths grow."""

    def scaling(self, sequence_length: int) -> RotaryScaling:
        """Return the factor."""
        return LinearScaling(self.factor)


class DynamicRotaryConfig(RotaryConfig):
    """A base that grows with the configured sequence length beyond the trained one (NTK-aware scaling)."""

    type: Literal["dynamic"] = "dynamic"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""
    factor: Stretch
    """How fast the base grows."""
    trained_length: TrainedLength = None
    """Length up to which nothing changes. null: sequence_length. It is compared with sequence_length, never with the
    length of a batch."""

    def pinned(self, sequence_length: int) -> RotaryConfig:
        """Return the same rotation with each null replaced by its value in a model of this sequence length."""
        return self.model_copy(update={"trained_length": self.trained_length or sequence_length})

    def scaling(self, sequence_length: int) -> RotaryScaling:
        """Return the factor and the length."""
        return DynamicScaling(factor=self.factor, trained_length=self.trained_length or sequence_length)


class YarnRotaryConfig(RotaryConfig):
    """Long wavelengths are scaled, short ones stay as they are, with a ramp between them (arXiv:2309.00071)."""

    type: Literal["yarn"] = "yarn"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""
    factor: Stretch
    """Factor of the long wavelengths."""
    trained_length: TrainedLength = None
    """Length before the extension. null: sequence_length."""
    beta_fast: Turns = 32.0
    """A wavelength that makes at least this many turns within trained_length stays as it is."""
    beta_slow: Turns = 1.0
    """A wavelength that makes at most this many turns within trained_length is scaled in full."""
    attention_factor: float | None = Field(default=None, gt=0)
    """Multiplies cosine and sine. null: 1 + 0.1 ln factor, or the value that mscale and mscale_all_dim give."""
    mscale: float | None = Field(default=None, ge=0)
    """Where mscale_all_dim is given too, and neither is 0, attention_factor is (1 + 0.1 mscale ln factor) /
    (1 + 0.1 mscale_all_dim ln factor). null: neither is used."""
    mscale_all_dim: float | None = Field(default=None, ge=0)
    """See mscale. null: neither is used."""
    truncate: bool = True
    """Round the ends of the ramp to whole pairs."""

    def pinned(self, sequence_length: int) -> RotaryConfig:
        """Return the same rotation with each null replaced by its value in a model of this sequence length."""
        return self.model_copy(update={"trained_length": self.trained_length or sequence_length})

    def problems(self) -> Iterator[Problem]:
        """Check the order of the ramp's ends."""
        if self.beta_fast < self.beta_slow:
            yield Problem("beta_fast", f"is {self.beta_fast:g}, below beta_slow ({self.beta_slow:g}); exchange them")

    def scaling(self, sequence_length: int) -> RotaryScaling:
        """Return the ramp."""
        return YarnScaling(
            factor=self.factor,
            trained_length=self.trained_length or sequence_length,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            attention_factor=self.attention_factor,
            mscale=self.mscale,
            mscale_all_dim=self.mscale_all_dim,
            truncate=self.truncate,
        )


class Llama3RotaryConfig(RotaryConfig):
    """Llama 3.1: long wavelengths are scaled, short ones stay as they are, those between are blended."""

    type: Literal["llama3"] = "llama3"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""
    factor: Stretch
    """Factor of the long wavelengths."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Wavelengths above trained_length / low_freq_factor are scaled in full."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Wavelengths below trained_length / high_freq_factor stay as they are."""
    trained_length: TrainedLength = None
    """Length before the extension. null: sequence_length."""

    def pinned(self, sequence_length: int) -> RotaryConfig:
        """Return the same rotation with each null replaced by its value in a model of this sequence length."""
        return self.model_copy(update={"trained_length": self.trained_length or sequence_length})

    def problems(self) -> Iterator[Problem]:
        """Check that there are wavelengths between the two limits."""
        if self.high_freq_factor <= self.low_freq_factor:
            yield Problem(
                "high_freq_factor",
                f"is {self.high_freq_factor:g}, but must be above low_freq_factor ({self.low_freq_factor:g}); raise it",
            )

    def scaling(self, sequence_length: int) -> RotaryScaling:
        """Return the factors."""
        return Llama3Scaling(
            factor=self.factor,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
            trained_length=self.trained_length or sequence_length,
        )


class LongRopeRotaryConfig(RotaryConfig):
    """A factor for each wavelength, one list for short and one for long sequences (arXiv:2402.13753)."""

    type: Literal["longrope"] = "longrope"
    """default, none, linear, dynamic, yarn, llama3 or longrope."""
    short_factor: Divisors
    """A factor for each rotated pair where sequence_length is at most trained_length."""
    long_factor: Divisors
    """A factor for each rotated pair where sequence_length is above trained_length. The length of a batch has no
    influence."""
    trained_length: TrainedLength = None
    """Length before the extension. null: sequence_length."""
    factor: float | None = Field(default=None, gt=0)
    """Factor by which the context was extended. null: sequence_length / trained_length."""
    attention_factor: float | None = Field(default=None, gt=0)
    """Multiplies cosine and sine. null: sqrt(1 + ln factor / ln trained_length), 1 for a factor of at most 1."""

    def pinned(self, sequence_length: int) -> RotaryConfig:
        """Return the same rotation with each null replaced by its value in a model of this sequence length."""
        trained = self.trained_length or sequence_length
        factor = sequence_length / trained if self.factor is None else self.factor
        return self.model_copy(update={"trained_length": trained, "factor": factor})

    def problems(self) -> Iterator[Problem]:
        """Check that the lists have the same length."""
        if len(self.short_factor) != len(self.long_factor):
            yield Problem(
                "long_factor",
                f"has {len(self.long_factor)} numbers, short_factor has {len(self.short_factor)}; give each one number "
                "for each rotated pair",
            )

    def divides_by_zero(self, sequence_length: int) -> bool:
        """Return whether attention_factor would be divided by the logarithm of a trained length of 1."""
        trained = self.trained_length or sequence_length
        factor = sequence_length / trained if self.factor is None else self.factor
        return self.attention_factor is None and trained == 1 and factor > 1

    def scaling(self, sequence_length: int) -> RotaryScaling:
        """Return the lists."""
        return LongRopeScaling(
            short_factor=tuple(self.short_factor),
            long_factor=tuple(self.long_factor),
            trained_length=self.trained_length or sequence_length,
            factor=self.factor,
            attention_factor=self.attention_factor,
        )


class AttentionKindConfig(BaseConfig):
    """Attention settings of one kind of layer."""

    window: int | None = Field(default=None, ge=1)
    """Number of keys that a token sees, itself included. null: all before it."""
    rotary: RotaryConfig | None = None
    """Rotation of these layers, of the same types as transformer_architecture.rotary. null:
    transformer_architecture.rotary."""
