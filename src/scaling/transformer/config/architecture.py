"""TransformerArchitectureConfig: the shape of the model and the arithmetic it is computed in."""

from __future__ import annotations

import math
from collections.abc import Iterator
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

    @property
    def head_size(self) -> int:
        """Return the dimensions of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        """Return the number of key and value heads."""
        return self.attention_num_kv_heads or self.num_attention_heads

    @property
    def rotary_dimensions(self) -> int:
        """Return the dimensions of each head that are rotated; 0 without rotary positions."""
        if self.relative_position_embedding_type is RelativePositionEmbeddingType.NONE:
            return 0
        return int(self.head_size * self.rotary_percentage)

    @property
    def mlp_size(self) -> int:
        """Return the width of the MLP."""
        return round(self.hidden_size * self.mlp_factor)

    @property
    def num_pipeline_layers(self) -> int:
        """Return the length of the list that is cut into stages: embedding, transformer layers, final norm, head."""
        return 1 + self.num_layers + 1 + (1 if self.lm_head else 0)

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
        elif self.rotary_dimensions % 2 or (
            self.rotary_dimensions == 0
            and self.relative_position_embedding_type is not RelativePositionEmbeddingType.NONE
        ):
            yield Problem(
                "rotary_percentage",
                f"is {self.rotary_percentage:g}, which rotates {self.rotary_dimensions} of the {self.head_size} "
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
        if not math.isclose(hidden * self.mlp_factor, self.mlp_size, rel_tol=1e-9) or self.mlp_size < 1:
            yield Problem(
                "mlp_factor",
                f"is {self.mlp_factor:g}, but times hidden_size ({hidden}) must be a whole number, not "
                f"{hidden * self.mlp_factor:g}; {max(1, self.mlp_size) / hidden!r} gives {max(1, self.mlp_size)}",
            )


class TransformerArchitectureConfig(FormerArchitectureConfig, ArchitectureConfig):
    """A decoder-only language model."""
