"""Settings of the architecture that exist for the predecessor's files only: accepted at their defaults, never used."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field

from scaling.core import BaseConfig, NoEffect, Unavailable


class PoolingMethod(str, Enum):
    """How an embedding is made from the vectors of a sequence."""

    MEAN = "mean"
    LAST_TOKEN = "last_token"
    WEIGHTED_MEAN = "weighted_mean"


class EmbeddingHeadConfig(BaseConfig):
    """A head that makes one vector from a sequence."""

    name: str
    """Name of the head."""
    proj_layers: list[int] | None = None
    """Widths of the projections. null: none."""
    pooling: PoolingMethod = PoolingMethod.WEIGHTED_MEAN
    """mean, last_token or weighted_mean."""


_ONLY_WITH_UMUP = NoEffect("u-muP is not available in this version")


class UMuPConfig(BaseConfig):
    """Unit-scaled maximal update parametrisation."""

    enable: Annotated[bool, Unavailable()] = False
    """Use u-muP."""
    allow_non_umup_params: Annotated[bool, _ONLY_WITH_UMUP] = False
    """Allow parameters it does not know."""
    normalize_depth_to_num_layers: Annotated[bool, _ONLY_WITH_UMUP] = False
    """Count depth in layers instead of residual branches."""
    attn_mult: Annotated[float, _ONLY_WITH_UMUP] = 1.0
    """Multiplier of attention scores."""
    act_mult: Annotated[float, _ONLY_WITH_UMUP] = 1.0
    """Multiplier of the activation function's input."""
    residual_mult: Annotated[float, _ONLY_WITH_UMUP] = 1.0
    """Multiplier of residual branches."""
    residual_attn_ratio: Annotated[float, _ONLY_WITH_UMUP] = 1.0
    """Ratio of the attention branch to the MLP branch."""
    loss_mult: Annotated[float, _ONLY_WITH_UMUP] = 1.0
    """Multiplier of the logits."""


class FormerArchitectureConfig(BaseConfig):
    """Settings of the predecessor's architecture that this version does not use."""

    attention_use_matmul: Annotated[bool, NoEffect("attention uses PyTorch's fused kernels")] = False
    """Formerly: which product computes attention scores."""
    image_encoder: Annotated[bool, Unavailable()] = False
    """Accept images."""
    dropout_image_encoder: Annotated[float, NoEffect("images are not available in this version")] = Field(
        default=0.0, ge=0, le=1
    )
    """Dropout of the image encoder's output."""
    embedding_head_config: Annotated[EmbeddingHeadConfig | None, Unavailable()] = None
    """A head that makes one vector from a sequence."""
    umup: UMuPConfig = Field(default_factory=UMuPConfig)
    """Unit-scaled maximal update parametrisation."""
