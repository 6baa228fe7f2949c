"""From the architecture section to the list of layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from scaling.core import (
    AttentionCore,
    ColumnParallelLinear,
    DocumentMasks,
    Dropout,
    DroppedAttention,
    FlashAttention,
    Heads,
    LayerNorm,
    LayerSpec,
    MaskedSoftmaxKernel,
    Normal,
    NormType,
    ParallelMLP,
    ParallelSelfAttention,
    ParallelSwiGLUMLP,
    Place,
    RelativePositionEmbeddingType,
    RMSNorm,
    RotaryEmbedding,
    RowParallelLinear,
    ScaledDotProduct,
    TiedLayerSpec,
    Topology,
    attention_projections,
    flash_attention_available,
)
from scaling.transformer.config.architecture import MLPType, TransformerArchitectureConfig
from scaling.transformer.layers.block import TransformerLayer
from scaling.transformer.layers.embedding import EmbeddingInput
from scaling.transformer.layers.head import LayerNormWrapper, TransformerLMHead, TransformerLMHeadTied


def layer_specs(config: TransformerArchitectureConfig, topology: Topology, *, seed: int) -> list[LayerSpec]:
    """Return the layers of the model: embedding, blocks, final norm and, with `lm_head`, the head.

    `seed` keys the dropout masks. Costs are multiply-adds per token, for the balanced partition.
    """
    make = _Maker(config, topology, seed)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    head_cost = float(hidden * vocabulary)
    specs: list[LayerSpec] = []
    embedding_dropout = make.dropout("embedding", config.dropout_embedding)
    table: dict[str, Any] = {"std": make.std, "place": make.place}
    if config.lm_head and config.weight_tying:
        table |= {"tie": "embedding_tying", "tied_parameters": ["embedding.weight"]}
        specs.append(TiedLayerSpec(EmbeddingInput, vocabulary, hidden, dropout=embedding_dropout, cost=0.0, **table))
        head: LayerSpec = TiedLayerSpec(TransformerLMHeadTied, vocabulary, hidden, cost=head_cost, **table)
    else:
        specs.append(LayerSpec(EmbeddingInput, vocabulary, hidden, dropout=embedding_dropout, cost=0.0, **table))
        head = LayerSpec(TransformerLMHead, vocabulary, hidden, cost=head_cost, **table)
    specs.extend(LayerSpec(make.block, index, cost=make.block_cost) for index in range(config.num_layers))
    specs.append(LayerSpec(make.final_norm, cost=0.0))
    if config.lm_head:
        specs.append(head)
    return specs


class _Maker:
    """Builds blocks. One is shared by all blocks of a rank, and so are the tables and masks it holds."""

    def __init__(self, config: TransformerArchitectureConfig, topology: Topology, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.place = Place(topology, config.precision.dtype, topology.sequence_parallel)
        self.std = math.sqrt(2.0 / (5.0 * config.hidden_size))
        self.masks = DocumentMasks(causal=config.causal)
        self.intermediate = config.mlp_size
        self.heads = Heads(config.num_attention_heads, config.head_size)
        self.kv_heads = Heads(config.num_kv_heads, config.head_size)
        self.rotary = self._rotary()

    @property
    def block_cost(self) -> float:
        hidden = self.config.hidden_size
        matrices = 3 if self.config.mlp_type is MLPType.SWIGLU else 2
        kv = 2 * self.kv_heads.features
        return float(hidden * (2 * hidden + kv + matrices * self.intermediate + self.config.sequence_length))

    def dropout(self, site: str, probability: float) -> Dropout:
        return Dropout(
            probability, seed=self.seed, site=site, place=self.place, stream=self.config.dropout_stream.value
        )

    def norm(self, features: int, place: Place) -> LayerNorm | RMSNorm:
        kind = RMSNorm if self.config.norm_type is NormType.RMS else LayerNorm
        return kind(features, epsilon=self.config.layernorm.layernorm_epsilon, place=place)

    def final_norm(self) -> LayerNormWrapper:
        return LayerNormWrapper(self.norm(self.config.hidden_size, self.place))

    def _rotary(self) -> RotaryEmbedding | None:
        kind = self.config.relative_position_embedding_type
        if kind is RelativePositionEmbeddingType.NONE:
            return None
        return RotaryEmbedding(
            self.config.rotary_dimensions,
            max_seq_length=self.config.sequence_length,
            base=float(self.config.rotary_embedding_base),
            interleaved=kind is RelativePositionEmbeddingType.ROTARY_COMPLEX,
        )

    def core(self, index: int) -> AttentionCore:
        softmax, place = self.config.masked_softmax, self.place
        scale = softmax.scale / math.sqrt(self.config.head_size)
        core: AttentionCore = ScaledDotProduct(self.masks, scale=scale)
        flash = softmax.kernel is MaskedSoftmaxKernel.FLASH_ATTENTION
        if flash and flash_attention_available(place.topology.device, place.dtype):
            core = FlashAttention(
                scale=scale, causal=self.config.causal, deterministic=softmax.deterministic_flash_attn_bwd
            )
        if not self.config.dropout_attention_probs:
            return core
        dropout = self.dropout(f"attention_probs.{index}", self.config.dropout_attention_probs)
        local_heads = self.heads.local(place.parts, place.index)
        return DroppedAttention(core, dropout, self.masks, scale=scale, heads=local_heads)

    def attention(self, index: int) -> ParallelSelfAttention:
        config, initializer = self.config, Normal(self.std)
        attention = ParallelSelfAttention(
            attention_projections(
                config.hidden_size,
                {"query": self.heads, "key": self.kv_heads, "value": self.kv_heads},
                place=self.place,
                bias=config.attention_bias,
                initializer=initializer,
                fused=config.attention_qkv_in_one,
            ),
            self.core(index),
            RowParallelLinear(
                self.heads.features,
                config.hidden_size,
                place=self.place,
                bias=config.attention_bias,
                initializer=initializer,
            ),
            head_dim=config.head_size,
            rotary=self.rotary,
        )
        if not config.key_query_norm:
            return attention
        norm_query, norm_key = (self.norm(config.head_size, replace(self.place, sequence_parallel=False)) for _ in "qk")
        return attention.with_key_query_norm(norm_query, norm_key)

    def mlp(self) -> ParallelMLP | ParallelSwiGLUMLP:
        hidden, options = self.config.hidden_size, self._options(self.config.mlp_bias)
        out = RowParallelLinear(self.intermediate, hidden, **options)
        if self.config.mlp_type is MLPType.DEFAULT:
            return ParallelMLP(ColumnParallelLinear(hidden, self.intermediate, **options), out)
        ways_in = ("dense_in", "siglu_weight")
        return ParallelSwiGLUMLP(
            {name: ColumnParallelLinear(hidden, self.intermediate, **options) for name in ways_in}, out
        )

    def _options(self, bias: bool) -> dict[str, Any]:
        return {"place": self.place, "bias": bias, "initializer": Normal(self.std)}

    def block(self, index: int) -> TransformerLayer:
        hidden = self.config.hidden_size
        return TransformerLayer(
            input_layernorm=self.norm(hidden, self.place),
            self_attention=self.attention(index),
            post_attention_layernorm=self.norm(hidden, self.place),
            mlp=self.mlp(),
            dropout_after_attention=self.dropout(f"after_attention.{index}", self.config.dropout_after_attention),
            dropout_after_mlp=self.dropout(f"after_mlp.{index}", self.config.dropout_after_mlp),
        )
