"""OptimizerConfig: gradient handling, loss scaling, and the constants of each update rule."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal, final

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.family import ConfigFamily
from scaling.core.config.fields import NoEffect, OnResume, Unavailable
from scaling.core.errors import Problem
from scaling.core.optimizer.rule import AdamW, UpdateRule

MOST_BFLOAT16_BETA: Final = 1 - 2.0**-7
"""Above this, a running mean in bfloat16 stalls too often. Half a unit in the last place is up to 2^-8 of a value, so a
value decays only where 1 - beta is larger. At twice that, a mean comes within a half of the value that it follows, even
where that value never changes."""


class LossScalerConfig(BaseConfig):
    """Dynamic scaling of the loss, so that small float16 gradients do not vanish."""

    enable: bool | None = None
    """null: on exactly for float16, the only precision that needs it."""
    initial_scale: float = Field(default=2.0**32, gt=0)
    """Scale of the first step. Overflows lower it; the first steps may be skipped until it fits."""
    window: int = Field(default=1000, ge=1)
    """Steps without overflow after which the scale is raised."""
    hysteresis: int = Field(default=2, ge=1)
    """Overflows needed to lower the scale; 1 lowers it at each."""
    consecutive_hysteresis: bool = False
    """true: a step without overflow restores the full hysteresis; false: only raising the scale does."""
    min_scale: float = Field(default=1.0, gt=0)
    """The scale is never lowered below this."""
    factor: float = Field(default=2.0, gt=1)
    """The scale is multiplied or divided by this."""

    def problems(self) -> Iterator[Problem]:
        """Check the order of the scales."""
        if self.min_scale > self.initial_scale:
            yield Problem("min_scale", f"is {self.min_scale:g}, above initial_scale ({self.initial_scale:g}); lower it")

    def enabled(self, *, float16: bool) -> bool:
        """Return whether the loss is scaled in a run whose parameters are, or are not, float16."""
        return float16 if self.enable is None else self.enable


class OptimizerConfig(ConfigFamily):
    """Settings around every update rule; a member of the family names its rule by `method`."""

    kind_key: ClassVar[str] = "method"
    default_kind: ClassVar[str | None] = "adamw"
    on_resume = OnResume.SCHEDULE

    gradient_clipping: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this global L2 norm. 0: off."""
    allreduce_bucket_size: Annotated[int, OnResume.RUNTIME] = Field(default=4_000_000, ge=1)
    """Gradient elements summed over the data-parallel ranks in one message. Smaller buckets start earlier during the
    backward pass, larger ones use the network better."""
    loss_scaler: LossScalerConfig = Field(default_factory=LossScalerConfig)
    """Dynamic scaling of the loss, so that small float16 gradients do not vanish."""
    zero: Annotated[bool, OnResume.RUNTIME] = False
    """Shard master weights and moments over the data-parallel ranks (ZeRO stage 1): less memory, the same result."""
    zero_save_static: Annotated[bool, NoEffect("every checkpoint loads in every layout")] = False
    """Formerly: save each rank's shard as it is."""
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are summed over micro-batches and ranks, and sent. bfloat16 saves 2 bytes a parameter and
    halves the bytes sent, but rounds each sum to 8 bits; norm and update are float32. Gradients of float64 weights are
    float64."""
    debug_log: Annotated[bool, Unavailable()] = False
    """Log norms of every parameter and its gradient."""

    @abstractmethod
    def rule(self) -> UpdateRule:
        """Return the rule of parameter groups that have none of their own."""


class _AdamWConstants(BaseConfig):
    """AdamW's own settings, in a separate class so that their keys come before the common ones in a file."""

    method: Literal["adamw"] = "adamw"
    """The update rule: adamw."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the running mean of gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment, so that a weight without a gradient is not divided by zero."""
    exp_avg_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the running mean of gradients is kept. bfloat16 saves 2 bytes a parameter; updates are computed in
    float32. Float64 weights have float64 moments."""
    exp_avg_sq_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the running mean of squared gradients is kept, as for exp_avg_dtype. bfloat16 needs a beta2 of at
    most 0.992."""


@final
class AdamWConfig(OptimizerConfig, _AdamWConstants):
    """AdamW on float32 master weights, optionally sharded over the data-parallel ranks (ZeRO stage 1)."""

    def problems(self) -> Iterator[Problem]:
        """Check that moments can change in the type in which they are kept."""
        for name, dtype, beta, value in (
            ("exp_avg_dtype", self.exp_avg_dtype, "beta1", self.beta1),
            ("exp_avg_sq_dtype", self.exp_avg_sq_dtype, "beta2", self.beta2),
        ):
            if dtype == "bfloat16" and value > MOST_BFLOAT16_BETA:
                yield Problem(
                    name,
                    f"is bfloat16, in which a mean with {beta} {value:g} hardly moves, because steps of less than 2^-8 "
                    f"of it are rounded away; set it to float32, or {beta} to {MOST_BFLOAT16_BETA:.3f} or less",
                )

    def rule(self) -> UpdateRule:
        """Return AdamW with these constants."""
        kept = {"exp_avg": self.exp_avg_dtype, "exp_avg_sq": self.exp_avg_sq_dtype}
        narrow = tuple(slot for slot, dtype in kept.items() if dtype == "bfloat16")
        return AdamW(beta1=self.beta1, beta2=self.beta2, eps=self.eps, bfloat16_slots=narrow)


def vanishing_constants(config: OptimizerConfig, *, precision: str) -> Iterator[Problem]:
    """Yield constants that are zero in the precision of the master weights: float32, or float64 for float64 weights."""
    if (
        isinstance(config, AdamWConfig)
        and precision == "float32"
        and struct.unpack("f", struct.pack("f", config.eps)) == (0,)
    ):
        yield Problem(
            "optimizer.eps",
            f"is {config.eps:g}, which is zero in float32, so that weights without a gradient become nan; set it to "
            "1e-8, say",
        )
