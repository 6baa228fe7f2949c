"""Configuration of building blocks: norms, attention, positions, LoRA, fp8."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Literal

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import NoEffect, OnResume
from scaling.core.errors import Problem
from scaling.core.nn.float8_recipe import Float8Recipe, FP8DType, Operands


class NormType(str, Enum):
    """Kinds of normalisation."""

    LAYERNORM = "layernorm"
    RMS = "rms"


class LayerNormOptimizationType(str, Enum):
    """Implementations of a norm."""

    TORCH = "torch"


class LayerNormConfig(BaseConfig):
    """LayerNorm and RMSNorm."""

    optimization_type: LayerNormOptimizationType = LayerNormOptimizationType.TORCH
    """Implementation: torch."""
    layernorm_epsilon: float = Field(default=1e-5, gt=0)
    """Added to the variance."""
    bias: bool | None = None
    """Add a bias. null: true for layernorm, false for rms."""
    weight: bool = True
    """Multiply by a weight."""
    weight_offset: Literal[0, 1] = 0
    """1: the weight w of an rms norm is stored around 0 and used as 1 + w."""


class MaskedSoftmaxKernel(str, Enum):
    """Implementations of attention."""

    TORCH = "torch"
    FLASH_ATTENTION = "flash_attention"


class MaskedSoftmaxConfig(BaseConfig):
    """The attention kernel."""

    kernel: Annotated[MaskedSoftmaxKernel, OnResume.RUNTIME] = MaskedSoftmaxKernel.TORCH
    """torch: PyTorch's scaled dot product attention; flash_attention: the first kernel that can compute the model's
    attention, out of the flash-attn package (where it is installed), PyTorch's varlen and flex attention (on GPUs), and
    torch. Score caps and dropout that none of these supports are computed step by step. A training reports the kernel
    when it starts."""
    softmax_in_fp32: bool = False
    """Compute the softmax in float32. Every kernel does so in any case; kept for configurations that set it."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplies the attention scores, on top of 1 / sqrt(head size)."""
    deterministic_flash_attn_bwd: bool = False
    """Make the backward pass of the flash-attn package give the same bits each time, at some cost in speed; PyTorch's
    kernels do so under training.use_deterministic_torch_algorithms."""

    def notes(self) -> Iterator[Problem]:
        """Yield notes on settings without effect."""
        if self.softmax_in_fp32:
            yield Problem("softmax_in_fp32", "has no effect: every kernel computes the softmax in float32 at least")


class RelativePositionEmbeddingType(str, Enum):
    """How attention receives positions."""

    NONE = "none"
    ROTARY = "rotary"
    ROTARY_COMPLEX = "rotary_complex"


class FP8MatmulConfig(BaseConfig):
    """Types of the two factors of a matrix product."""

    left_dtype: FP8DType = FP8DType.E4M3
    """Type of the left factor: e4m3 or e5m2."""
    right_dtype: FP8DType = FP8DType.E4M3
    """Type of the right factor: e4m3 or e5m2."""

    def problems(self) -> Iterator[Problem]:
        """Check that hardware supports the product."""
        if self.left_dtype is FP8DType.E5M2 and self.right_dtype is FP8DType.E5M2:
            yield Problem(
                "right_dtype", "is e5m2 like left_dtype, which no hardware multiplies; set one of them to e4m3"
            )

    @property
    def operands(self) -> Operands:
        """Return the two types."""
        return Operands(self.left_dtype, self.right_dtype)


class FP8LinearConfig(BaseConfig):
    """8-bit products of a linear layer, each set separately; null: that product stays in the layer's precision."""

    granularity: Literal["tensor", "row"] = "tensor"
    """Which elements share a scale. tensor: those of each factor, the fastest; row: those of each row of a factor (each
    token, each feature), which keeps more digits of rows that are small beside others."""
    dtypes_forward: FP8MatmulConfig | None = Field(default_factory=FP8MatmulConfig)
    """Output: input times weight. null: in the layer's precision."""
    dtypes_grad_input: FP8MatmulConfig | None = FP8MatmulConfig(left_dtype=FP8DType.E5M2)
    """Gradient of the input: output gradient times weight. null: in the layer's precision."""
    dtypes_grad_weight: FP8MatmulConfig | None = FP8MatmulConfig(right_dtype=FP8DType.E5M2)
    """Gradient of the weight: input times output gradient. null: in the layer's precision."""
    load_in_fp8: Annotated[bool, NoEffect("weights are stored in the precision of the model")] = False
    """Formerly: keep the weight itself in fp8."""

    def problems(self) -> Iterator[Problem]:
        """Check that the kernels with a scale per row support the products."""
        if self.granularity != "row":
            return
        for name in ("dtypes_forward", "dtypes_grad_input", "dtypes_grad_weight"):
            found: FP8MatmulConfig | None = getattr(self, name)
            field = "left_dtype" if name == "dtypes_grad_weight" else "right_dtype"  # multiplied by the gradient's rows
            if found is not None and getattr(found, field) is FP8DType.E5M2:
                yield Problem(
                    f"{name}.{field}", "is e5m2, but with granularity row this factor has to be e4m3; set it to that"
                )

    @property
    def recipe(self) -> Float8Recipe:
        """Return the recipe for the layers."""
        forward, grad_input, grad_weight = (
            None if found is None else found.operands
            for found in (self.dtypes_forward, self.dtypes_grad_input, self.dtypes_grad_weight)
        )
        return Float8Recipe(
            per_row=self.granularity == "row", forward=forward, grad_input=grad_input, grad_weight=grad_weight
        )
