"""TransformerArchitectureConfig: the shape of the model, the arithmetic it is computed in, and its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from scaling.core import (
    BaseConfig,
    Derived,
    LayerNormConfig,
    MaskedSoftmaxConfig,
    NormType,
    OnResume,
    Problem,
    RelativePositionEmbeddingType,
)
from scaling.transformer.config.former import FormerArchitectureConfig
from scaling.transformer.plan.model import Arithmetic, LayerPlan, ModelPlan, pre_norm
from scaling.transformer.plan.parts import (
    AttentionPlan,
    DropoutPlan,
    FeedForwardPlan,
    NormPlan,
    RotationPlan,
    TablePlan,
)

if TYPE_CHECKING:
    import torch


class Precision(str, Enum):
    """Type of parameters and activations. Master weights and sums of gradients are float32, or float64 for float64."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def dtype(self) -> torch.dtype:
        """Return PyTorch's type of this name."""
        import torch  # checking a configuration does not need it, and importing it takes seconds

        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


class MLPType(str, Enum):
    """Which MLP."""

    DEFAULT = "default"
    SWIGLU = "swiglu"


class DropoutStream(str, Enum):
    """What the random masks of dropout depend on."""

    LAYOUT_INVARIANT = "layout_invariant"
    PER_RANK = "per_rank"


class ArchitectureConfig(BaseConfig):
    """What this version builds: all settings of `TransformerArchitectureConfig` that do something."""

    on_resume = OnResume.IDENTITY

    vocab_size: Annotated[int, Derived()] = Field(default=0, ge=0)
    """Tokens the model knows; need not be divisible by anything. With data.corpus, the size of the tokenizer to train.
    null or 0: as many as the tokenizer has."""
    vocab_file: Annotated[Path | None, OnResume.RUNTIME] = None
    """Tokenizer, a JSON file of Hugging Face tokenizers. null: none, or that of data.corpus."""
    hidden_size: int = Field(default=256, ge=1)
    """Width of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    """Transformer layers."""
    num_attention_heads: int = Field(default=4, ge=1)
    """Query heads of attention; divides hidden_size."""
    attention_num_kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads, each shared by the same number of query heads. null: as many as query heads."""
    attention_qkv_in_one: Annotated[bool, Derived(), OnResume.RUNTIME] = True
    """One fused weight for query, key and value. null: true, but false where attention_num_kv_heads is set."""
    attention_bias: bool = True
    """Biases in the projections of attention."""
    key_query_norm: bool = False
    """Normalise queries and keys within each head."""
    rotary_embedding_base: int = Field(default=10000, ge=1)
    """Base of the wavelengths of rotary positions."""
    rotary_percentage: float = Field(default=1.0, gt=0, le=1)
    """Share of each head's dimensions that is rotated."""
    relative_position_embedding_type: RelativePositionEmbeddingType = RelativePositionEmbeddingType.ROTARY
    """none; rotary: rotates the first half of a head against the second; rotary_complex: rotates neighbouring pairs."""
    sequence_length: int = Field(default=2048, ge=1)
    """Tokens of one sample."""
    norm_type: NormType = NormType.LAYERNORM
    """layernorm or rms."""
    layernorm: LayerNormConfig = Field(default_factory=LayerNormConfig)
    """Constants of the norm, for rms as well."""
    mlp_type: MLPType = MLPType.DEFAULT
    """default: GELU; swiglu: gated by SiLU, with a third weight."""
    mlp_factor: float = Field(default=4.0, gt=0, le=1e6)
    """Width of the MLP as a factor of hidden_size; their product is a whole number."""
    mlp_bias: bool = True
    """Biases in the MLP."""
    reset_attention_mask: bool = True
    """Do not attend across the end of a document."""
    reset_position_ids: bool = True
    """Count positions from 0 in each document."""
    weight_tying: bool = True
    """Use the embedding as the weight of the language model head."""
    lm_head: bool = True
    """Map the last hidden state to the vocabulary."""
    causal: bool = True
    """Attend to earlier tokens only."""
    masked_softmax: MaskedSoftmaxConfig = Field(default_factory=MaskedSoftmaxConfig)
    """The attention kernel."""
    precision: Annotated[Precision, OnResume.SCHEDULE] = Precision.FLOAT32
    """float32, bfloat16, float16, or float64 for verification."""
    dropout_embedding: Annotated[float, OnResume.SCHEDULE] = Field(default=0.0, ge=0, le=1)
    """Dropout behind the embedding. 0: off."""
    dropout_attention_probs: Annotated[float, OnResume.SCHEDULE] = Field(default=0.0, ge=0, le=1)
    """Dropout of attention probabilities. 0: off."""
    dropout_after_attention: Annotated[float, OnResume.SCHEDULE] = Field(default=0.0, ge=0, le=1)
    """Dropout of attention's output before it is added. 0: off."""
    dropout_after_mlp: Annotated[float, OnResume.SCHEDULE] = Field(default=0.0, ge=0, le=1)
    """Dropout of the MLP's output before it is added. 0: off."""
    dropout_stream: Annotated[DropoutStream, OnResume.SCHEDULE] = DropoutStream.LAYOUT_INVARIANT
    """layout_invariant: the same masks in every layout; per_rank: faster, different masks in each layout."""

    @classmethod
    def prepare(cls, given: dict[str, Any]) -> Iterator[Problem]:
        """Fuse query, key and value where they have the same number of heads."""
        given.setdefault("attention_qkv_in_one", given.get("attention_num_kv_heads") is None)
        yield from ()

    def problems(self) -> Iterator[Problem]:
        """Check the sizes against each other."""
        hidden, heads, kv_heads = self.hidden_size, self.num_attention_heads, self.attention_num_kv_heads
        if hidden % heads:
            yield Problem(
                "hidden_size",
                f"is {hidden}, but must be divisible by num_attention_heads ({heads}); the nearest that is: "
                f"{max(1, round(hidden / heads)) * heads}",
            )
        elif (rotation := _attention_of(self).rotation) is not None and (
            rotation.dimensions == 0 or rotation.dimensions % 2
        ):
            yield Problem(
                "rotary_percentage",
                f"is {self.rotary_percentage:g}, which rotates {rotation.dimensions} of the {hidden // heads} "
                f"dimensions of a head (hidden_size {hidden} / num_attention_heads {heads}), but rotation needs an "
                "even number of at least 2; change one of the three, or set relative_position_embedding_type to none",
            )
        if kv_heads is not None and heads % kv_heads:
            yield Problem(
                "attention_num_kv_heads",
                f"is {kv_heads}, but must divide num_attention_heads ({heads}); {math.gcd(kv_heads, heads)} does",
            )
        if kv_heads is not None and self.attention_qkv_in_one:
            yield Problem(
                "attention_qkv_in_one",
                f"is true, but with attention_num_kv_heads ({kv_heads}) the weights have different sizes; set it to "
                "false",
            )
        width = _feed_forward_of(self).width
        if not math.isclose(hidden * self.mlp_factor, width, rel_tol=1e-9) or width < 1:
            yield Problem(
                "mlp_factor",
                f"is {self.mlp_factor:g}, but times hidden_size ({hidden}) must be a whole number, not "
                f"{hidden * self.mlp_factor:g}; {max(1, width) / hidden!r} gives {max(1, width)}",
            )


class TransformerArchitectureConfig(FormerArchitectureConfig, ArchitectureConfig):
    """A decoder-only language model."""


def plan_of(architecture: ArchitectureConfig) -> ModelPlan:
    """Return the model that a valid section describes. Nothing else reads its keys to know what the layers are."""
    norm = _norm_of(architecture, architecture.hidden_size)
    block = pre_norm(
        norm,
        _attention_of(architecture),
        _feed_forward_of(architecture),
        dropout_after_attention=architecture.dropout_after_attention,
        dropout_after_mlp=architecture.dropout_after_mlp,
    )
    embedding, *head = _ends_of(architecture)
    final_norm = LayerPlan("norm", (("norm", norm),))
    return ModelPlan(
        runs=((1, embedding), (architecture.num_layers, block), (1, final_norm), *((1, layer) for layer in head)),
        sequence=architecture.sequence_length,
        arithmetic=Arithmetic(
            precision=architecture.precision.value,
            kernel=architecture.masked_softmax.kernel.value,
            deterministic=architecture.masked_softmax.deterministic_flash_attn_bwd,
            dropout_stream=architecture.dropout_stream.value,
        ),
    )


def _ends_of(architecture: ArchitectureConfig) -> Iterator[LayerPlan]:
    """Yield the embedding, and the head if there is one."""
    table = TablePlan(vocabulary=architecture.vocab_size, hidden=architecture.hidden_size, std=_std_of(architecture))
    matrix, tied = replace(table, multiplied=True), ("embedding.weight",)
    looked_up = (("embedding", table), ("dropout", DropoutPlan("embedding", architecture.dropout_embedding)))
    if architecture.lm_head and architecture.weight_tying:
        yield LayerPlan("embedding", looked_up, tied)
        yield LayerPlan("tied_head", (("embedding", matrix),), tied)
        return
    yield LayerPlan("embedding", looked_up)
    if architecture.lm_head:
        yield LayerPlan("head", (("linear", matrix),))


def _std_of(architecture: ArchitectureConfig) -> float:
    return math.sqrt(2.0 / (5.0 * architecture.hidden_size))


def _norm_of(architecture: ArchitectureConfig, features: int) -> NormPlan:
    kind, epsilon = architecture.norm_type, architecture.layernorm.layernorm_epsilon
    return NormPlan(kind=kind, features=features, epsilon=epsilon, bias=kind is NormType.LAYERNORM)


def _attention_of(architecture: ArchitectureConfig) -> AttentionPlan:
    heads, std = architecture.num_attention_heads, _std_of(architecture)
    size = architecture.hidden_size // heads
    position = architecture.relative_position_embedding_type
    rotation = RotationPlan(
        dimensions=int(size * architecture.rotary_percentage),
        base=float(architecture.rotary_embedding_base),
        interleaved=position is RelativePositionEmbeddingType.ROTARY_COMPLEX,
    )
    return AttentionPlan(
        hidden=architecture.hidden_size,
        heads=heads,
        kv_heads=architecture.attention_num_kv_heads or heads,
        head_size=size,
        fused=architecture.attention_qkv_in_one,
        scale=architecture.masked_softmax.scale / math.sqrt(size),
        causal=architecture.causal,
        projection_bias=architecture.attention_bias,
        output_bias=architecture.attention_bias,
        projection_std=std,
        output_std=std,
        rotation=None if position is RelativePositionEmbeddingType.NONE else rotation,
        norm=_norm_of(architecture, size) if architecture.key_query_norm else None,
        dropout=architecture.dropout_attention_probs,
    )


def _feed_forward_of(architecture: ArchitectureConfig) -> FeedForwardPlan:
    gated, std = architecture.mlp_type is MLPType.SWIGLU, _std_of(architecture)
    return FeedForwardPlan(
        hidden=architecture.hidden_size,
        width=round(architecture.hidden_size * architecture.mlp_factor),
        activation="silu" if gated else "gelu",
        gated=gated,
        input_bias=architecture.mlp_bias,
        output_bias=architecture.mlp_bias,
        input_std=std,
        output_std=std,
    )
