"""TransformerArchitectureConfig: the shape of the model and the arithmetic it is computed in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import Self

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
from scaling.transformer.config.attention_kinds import (
    AttentionKindConfig,
    DynamicRotaryConfig,
    LongRopeRotaryConfig,
    NoRotaryConfig,
    RotaryConfig,
    UnscaledRotaryConfig,
)
from scaling.transformer.config.choices import (
    ActivationFunction,
    DropoutStream,
    InitializationScheme,
    MLPType,
    NormPlacement,
    Precision,
)
from scaling.transformer.config.finetuning import MethodsConfig
from scaling.transformer.config.float8 import Float8ArchitectureConfig
from scaling.transformer.config.former import FormerArchitectureConfig

MOST_LAYERS_IN_A_PATTERN = 100_000
"""Limit for models whose layers differ: these layers are listed one by one."""


class InitializationConfig(BaseConfig):
    """Initial values of weights: normal around zero. Biases start at 0, norms at 1."""

    scheme: InitializationScheme = InitializationScheme.NORMAL
    """normal: the same for all weights; depth_scaled: the weights of the two products that lead back to the residual
    stream have the standard deviation divided by sqrt(2 num_layers)."""
    std: float | None = Field(default=None, ge=0)
    """Standard deviation. null: sqrt(2 / (5 hidden_size))."""


class ArchitectureConfig(Float8ArchitectureConfig, MethodsConfig):
    """The settings of `TransformerArchitectureConfig` that have an effect in this version."""

    on_resume = OnResume.IDENTITY

    vocab_size: Annotated[int, Derived()] = Field(default=0, ge=0)
    """Number of tokens the model knows; need not be divisible by anything. With data.corpus, the size of the tokenizer
    to train. null or 0: as many as the tokenizer has."""
    vocab_file: Annotated[Path | None, OnResume.RUNTIME] = None
    """Tokenizer, a JSON file of Hugging Face tokenizers. null: none, or that of data.corpus."""
    hidden_size: int = Field(default=256, ge=1)
    """Width of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    """Number of transformer layers."""
    num_attention_heads: int = Field(default=4, ge=1)
    """Number of query heads; must divide hidden_size where attention_head_size is null."""
    attention_head_size: int | None = Field(default=None, ge=1)
    """Features of a head. null: hidden_size / num_attention_heads."""
    attention_num_kv_heads: int | None = Field(default=None, ge=1)
    """Number of key and value heads, each shared by the same number of query heads. null: as many as query heads."""
    attention_qkv_in_one: Annotated[bool, Derived(), OnResume.RUNTIME] = True
    """One fused weight for query, key and value. null: true, but false where attention_num_kv_heads is set."""
    attention_bias: bool = True
    """Biases in the projections of attention."""
    attention_qkv_bias: bool | None = None
    """Biases of query, key and value. null: attention_bias."""
    attention_dense_bias: bool | None = None
    """Bias of the projection after the heads. null: attention_bias."""
    attention_score_scale: float | None = Field(default=None, gt=0)
    """Multiplies the scores. null: 1 / sqrt(head size)."""
    attention_score_cap: float | None = Field(default=None, gt=0)
    """Scores s become cap * tanh(s / cap). null: no cap."""
    attention_qkv_clip: float | None = Field(default=None, gt=0)
    """Queries, keys and values are clipped to between minus and plus this value. null: no clipping."""
    key_query_norm: bool | Literal["per_head", "all_heads"] = False
    """Normalise queries and keys: per_head (or true) within each head, all_heads over the features of all heads."""
    num_local_attention_heads: int = Field(default=0, ge=0)
    """Number of heads, the first ones, that see only local_attention_window_size keys."""
    local_attention_window_size: int | None = Field(default=None, ge=1)
    """Number of keys that a token sees in the heads of num_local_attention_heads, itself included. null: there are no
    such heads."""
    attention_kinds: dict[str, AttentionKindConfig] = Field(default_factory=dict)
    """Kinds of attention by name, for layers that differ in their window or rotation."""
    attention_pattern: list[str] = Field(default_factory=list)
    """Names of attention_kinds, repeated over the layers and cut off at the last layer. Empty: all layers are the
    same."""
    rotary_embedding_base: float = Field(default=10000.0, gt=1)
    """Base of the wavelengths of rotary positions."""
    rotary_percentage: float = Field(default=1.0, gt=0, le=1)
    """Share of each head's dimensions that is rotated."""
    rotary: RotaryConfig = Field(default_factory=UnscaledRotaryConfig)
    """How the wavelengths were changed for longer sequences: default, none, linear, dynamic, yarn, llama3, longrope."""
    relative_position_embedding_type: RelativePositionEmbeddingType = RelativePositionEmbeddingType.ROTARY
    """none; rotary: rotates the first half of a head against the second; rotary_complex: rotates neighbouring pairs."""
    absolute_positions: int | None = Field(default=None, ge=1)
    """Length of a table of learned positions, added to the embedding. null: none."""
    sequence_length: Annotated[int, OnResume.ORDER] = Field(default=2048, ge=1)
    """Tokens of one sample."""
    norm_placement: NormPlacement = NormPlacement.PRE
    """pre: before attention and MLP; post: on their outputs; sandwich: both; after_sum: on the residual stream after
    each, without a final norm."""
    parallel_residual: bool = False
    """Attention and MLP see the same residual stream and are added to it together."""
    parallel_residual_norms: Literal[1, 2] = 2
    """With parallel_residual: 2, a norm each for attention and MLP, or 1, one norm for both."""
    norm_type: NormType = NormType.LAYERNORM
    """layernorm or rms."""
    layernorm: LayerNormConfig = Field(default_factory=LayerNormConfig)
    """Settings of the norm, for rms as well."""
    mlp_type: MLPType = MLPType.DEFAULT
    """default: GELU; swiglu: gated by SiLU, with a third weight; geglu: gated by GELU."""
    activation_function: ActivationFunction | None = None
    """gelu, gelu_tanh (its approximation), relu, squared_relu or silu. null: that of mlp_type."""
    mlp_factor: float = Field(default=4.0, gt=0, le=1e6)
    """Width of the MLP as a factor of hidden_size; their product must be a whole number."""
    mlp_size: int | None = Field(default=None, ge=1)
    """Width of the MLP. null: mlp_factor times hidden_size."""
    mlp_size_multiple_of: int = Field(default=1, ge=1)
    """The width is rounded up to a multiple of this."""
    mlp_bias: bool = True
    """Biases in the MLP."""
    reset_attention_mask: bool = True
    """Do not attend across the end of a document. Records (data.record_format) never attend to each other."""
    reset_position_ids: bool = True
    """Count positions from 0 in each document. Records (data.record_format) always start at 0."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Multiplies the embeddings."""
    residual_scale: float = Field(default=1.0, gt=0)
    """Multiplies the outputs of attention and MLP before they are added to the residual stream."""
    weight_tying: bool = True
    """Use the embedding as the weight of the language model head."""
    lm_head: bool = True
    """Map the last hidden state to the vocabulary."""
    logit_scale: float = Field(default=1.0, gt=0)
    """Multiplies the logits."""
    logit_cap: float | None = Field(default=None, gt=0)
    """Keeps logits between minus and plus this value: a scaled logit x becomes cap * tanh(x / cap). null: no cap."""
    lm_head_bias: bool = False
    """A bias for each token of the vocabulary, added to its logit before logit_scale applies."""
    causal: bool = True
    """Attend to earlier tokens only."""
    initialization: Annotated[InitializationConfig, OnResume.SCHEDULE] = Field(default_factory=InitializationConfig)
    """Initial values of weights."""
    masked_softmax: MaskedSoftmaxConfig = Field(default_factory=MaskedSoftmaxConfig)
    """The attention kernel."""
    precision: Annotated[Precision, OnResume.SCHEDULE] = Precision.FLOAT32
    """float32, bfloat16, float16, or float64 for verification."""
    dropout_embedding: Annotated[float, OnResume.SCHEDULE] = Field(default=0.0, ge=0, le=1)
    """Dropout after the embedding. 0: off."""
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

    @property
    def head_size(self) -> int:
        """Return the features of a head."""
        return self.attention_head_size or self.hidden_size // self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        """Return the width of the MLP."""
        width = self.mlp_size or max(1, round(self.hidden_size * self.mlp_factor))
        return -(-width // self.mlp_size_multiple_of) * self.mlp_size_multiple_of

    @property
    def rotated_dimensions(self) -> int:
        """Return how many features of a head are rotated, in layers that rotate any."""
        rotates = self.relative_position_embedding_type is not RelativePositionEmbeddingType.NONE
        return int(self.head_size * self.rotary_percentage) if rotates else 0

    def at_precision(self, precision: str) -> Self:
        """Return the same model with weights of another type."""
        return self.model_copy(update={"precision": Precision(precision)})

    def at_length(self, sequence_length: int) -> Self:
        """Return the same model for sequences of another length; rotations of some types adapt to the length."""
        kinds = {
            name: kind.model_copy(update={"rotary": kind.rotary and kind.rotary.pinned(self.sequence_length)})
            for name, kind in self.attention_kinds.items()
        }
        pinned = self.rotary.pinned(self.sequence_length)
        return self.model_copy(update={"sequence_length": sequence_length, "rotary": pinned, "attention_kinds": kinds})

    def kind_of_layers(self) -> Iterator[AttentionKindConfig]:
        """Yield the kinds of attention in one period of the pattern."""
        yield from (self.attention_kinds[name] for name in self.attention_pattern)
        if not self.attention_pattern:
            yield AttentionKindConfig()

    def problems(self) -> Iterator[Problem]:
        """Check the sizes against each other."""
        yield from _problems_of_heads(self)
        yield from _problems_of_rotation(self)
        yield from _problems_of_kinds(self)
        yield from _problems_of_norms(self)
        yield from _problems_of_mlp(self)
        if self.absolute_positions is not None and self.absolute_positions < self.sequence_length:
            yield Problem(
                "absolute_positions",
                f"is {self.absolute_positions}, fewer than the tokens of a sample (sequence_length "
                f"{self.sequence_length}); raise it, or lower sequence_length",
            )

    def notes(self) -> Iterator[Problem]:
        """Yield settings that no layer uses."""
        if self.relative_position_embedding_type is not RelativePositionEmbeddingType.NONE:
            return
        kinds = {f"attention_kinds.{name}.rotary": kind.rotary for name, kind in self.attention_kinds.items()}
        for path, rotary in {"rotary": self.rotary, **kinds}.items():
            if not isinstance(rotary, UnscaledRotaryConfig | NoRotaryConfig | None):
                yield Problem(
                    path, "has no effect: relative_position_embedding_type is none, and nothing is rotated; remove it"
                )


class TransformerArchitectureConfig(FormerArchitectureConfig, ArchitectureConfig):
    """A decoder-only language model."""


def _problems_of_heads(section: ArchitectureConfig) -> Iterator[Problem]:
    hidden, heads, kv_heads = section.hidden_size, section.num_attention_heads, section.attention_num_kv_heads
    if section.attention_head_size is None and hidden % heads:
        yield Problem(
            "hidden_size",
            f"is {hidden}, but must be divisible by num_attention_heads ({heads}); the nearest that is: "
            f"{max(1, round(hidden / heads)) * heads}; or give attention_head_size",
        )
    if kv_heads is not None and heads % kv_heads:
        yield Problem(
            "attention_num_kv_heads",
            f"is {kv_heads}, but must divide num_attention_heads ({heads}); {math.gcd(kv_heads, heads)} does",
        )
    if kv_heads is not None and section.attention_qkv_in_one:
        yield Problem(
            "attention_qkv_in_one",
            f"is true, but with attention_num_kv_heads ({kv_heads}) the weights have different sizes; set it to false",
        )
    if section.attention_score_scale is not None and section.masked_softmax.scale != 1.0:
        yield Problem(
            "attention_score_scale",
            f"is {section.attention_score_scale:g}, and masked_softmax.scale ({section.masked_softmax.scale:g}) "
            "multiplies 1 / sqrt(head size); use one of the two",
        )


def _problems_of_rotation(section: ArchitectureConfig) -> Iterator[Problem]:
    if section.attention_head_size is None and section.hidden_size % section.num_attention_heads:
        return
    if section.relative_position_embedding_type is RelativePositionEmbeddingType.NONE:
        return
    kinds = {f"attention_kinds.{name}.rotary": kind.rotary for name, kind in section.attention_kinds.items()}
    if all(isinstance(rotary or section.rotary, NoRotaryConfig) for rotary in kinds.values() or (section.rotary,)):
        return  # no layer rotates anything
    size, dimensions = section.head_size, section.rotated_dimensions
    if dimensions == 0 or dimensions % 2:
        source, change = "attention_head_size", "one of the two"
        if section.attention_head_size is None:
            source = f"hidden_size {section.hidden_size} / num_attention_heads {section.num_attention_heads}"
            change = "one of the three"
        yield Problem(
            "rotary_percentage",
            f"is {section.rotary_percentage:g}, which rotates {dimensions} of the {size} dimensions of a head "
            f"({source}), but rotation needs an even number of at least 2; change {change}, or set "
            "relative_position_embedding_type to none",
        )
        return
    for path, rotary in {"rotary": section.rotary, **kinds}.items():
        if isinstance(rotary, DynamicRotaryConfig) and dimensions == 2:
            yield Problem(
                f"{path}.type",
                "is dynamic, which changes the base, but of a head's dimensions 2 are rotated, in one pair, which does "
                "not depend on it; use another type",
            )
        if isinstance(rotary, LongRopeRotaryConfig) and len(rotary.short_factor) != dimensions // 2:
            yield Problem(
                f"{path}.short_factor",
                f"has {len(rotary.short_factor)} numbers, but {dimensions} dimensions of a head are rotated, in "
                f"{dimensions // 2} pairs; give one number for each",
            )
        if isinstance(rotary, LongRopeRotaryConfig) and rotary.divides_by_zero(section.sequence_length):
            yield Problem(
                f"{path}.attention_factor",
                "is null, and then divided by the logarithm of trained_length, which of 1 is 0; give attention_factor, "
                "or a larger trained_length",
            )


def _problems_of_kinds(section: ArchitectureConfig) -> Iterator[Problem]:
    kinds, pattern = section.attention_kinds, section.attention_pattern
    for index, name in enumerate(pattern):
        if name not in kinds:
            known = f"; there is {', '.join(kinds)}" if kinds else ""
            yield Problem(f"attention_pattern.{index}", f"is {name!r}, which attention_kinds does not have{known}")
    for name in kinds:
        if name not in pattern:
            yield Problem(
                f"attention_kinds.{name}", "is in no layer; name it in attention_pattern, or remove it from here"
            )
    if len(set(pattern)) > 1 and section.num_layers > MOST_LAYERS_IN_A_PATTERN:
        yield Problem(
            "attention_pattern",
            f"is for at most {MOST_LAYERS_IN_A_PATTERN} layers, not {section.num_layers} (num_layers); remove one",
        )
    windows = [kind.window for kind in kinds.values() if kind.window is not None]
    local, window = section.num_local_attention_heads, section.local_attention_window_size
    if local > section.num_attention_heads:
        yield Problem(
            "num_local_attention_heads",
            f"is {local}, but there are {section.num_attention_heads} heads (num_attention_heads); lower it",
        )
    if local and window is None:
        yield Problem(
            "local_attention_window_size",
            f"is null, but {local} heads see a window only (num_local_attention_heads); say how many keys",
        )
    if not local and window is not None:
        yield Problem(
            "num_local_attention_heads",
            f"is 0, so no head has the window of {window} keys (local_attention_window_size); set it to "
            f"{section.num_attention_heads} for all heads",
        )
    if local and windows:
        yield Problem(
            "num_local_attention_heads",
            f"is {local}, but attention_kinds has windows as well; use one of the two",
        )
    if not section.causal and (local or windows):
        yield Problem("causal", "is false, but windows are for attention to earlier tokens only; remove the windows")


def _problems_of_norms(section: ArchitectureConfig) -> Iterator[Problem]:
    norm, rms = section.layernorm, section.norm_type is NormType.RMS
    if rms and norm.bias:
        yield Problem("layernorm.bias", "is true, but norm_type rms has no bias; remove it")
    if rms and not norm.weight:
        yield Problem("layernorm.weight", "is false, but norm_type rms is not built without a weight; set it to true")
    if not rms and norm.weight_offset:
        yield Problem(
            "layernorm.weight_offset",
            f"is {norm.weight_offset:g}, but norm_type layernorm stores its weight as it is; set it to 0",
        )
    if not rms and section.key_query_norm == "all_heads":
        yield Problem("key_query_norm", "is all_heads, which is built for norm_type rms only; use per_head")
    if section.parallel_residual and section.norm_placement is not NormPlacement.PRE:
        yield Problem(
            "norm_placement",
            f"is {section.norm_placement.value}, but with parallel_residual norms stand before the branches; set it to "
            "pre",
        )
    if not section.parallel_residual and section.parallel_residual_norms != 2:
        yield Problem(
            "parallel_residual_norms", "is 1, which is for parallel_residual only; set that to true, or remove this"
        )


def _problems_of_mlp(section: ArchitectureConfig) -> Iterator[Problem]:
    hidden, width = section.hidden_size, round(section.hidden_size * section.mlp_factor)
    if section.mlp_size is not None or section.mlp_size_multiple_of > 1:
        return
    if not math.isclose(hidden * section.mlp_factor, width, rel_tol=1e-9) or width < 1:
        yield Problem(
            "mlp_factor",
            f"is {section.mlp_factor:g}, but times hidden_size ({hidden}) must be a whole number, not "
            f"{hidden * section.mlp_factor:g}; {max(1, width) / hidden!r} gives {max(1, width)}",
        )
