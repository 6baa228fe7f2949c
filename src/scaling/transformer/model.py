"""From the architecture section to the list of layers."""

from __future__ import annotations

import math
from typing import Any

import torch

from scaling.core import (
    AttentionShape,
    DocumentMasks,
    Dropout,
    LayerNorm,
    LayerSpec,
    Normal,
    NormType,
    ParallelMLP,
    ParallelSelfAttention,
    ParallelSwiGLUMLP,
    RelativePositionEmbeddingType,
    RMSNorm,
    RotaryEmbedding,
    TiedLayerSpec,
    Topology,
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
    table: dict[str, Any] = {"std": make.std, "topology": topology, "dtype": make.dtype}
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
        self.topology = topology
        self.seed = seed
        self.dtype: torch.dtype = config.precision.dtype
        self.std = math.sqrt(2.0 / (5.0 * config.hidden_size))
        self.masks = DocumentMasks(causal=config.causal)
        self.intermediate = round(config.hidden_size * config.mlp_factor)
        self.shape = AttentionShape(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.attention_num_kv_heads,
            fused=config.attention_qkv_in_one,
            bias=config.attention_bias,
            causal=config.causal,
            scale=config.masked_softmax.scale,
            kernel=config.masked_softmax.kernel.value,
            deterministic=config.masked_softmax.deterministic_flash_attn_bwd,
        )

    @property
    def block_cost(self) -> float:
        hidden = self.config.hidden_size
        matrices = 3 if self.config.mlp_type is MLPType.SWIGLU else 2
        kv = 2 * self.shape.kv_heads * self.shape.head_dim
        return float(hidden * (2 * hidden + kv + matrices * self.intermediate + self.config.sequence_length))

    def dropout(self, site: str, probability: float) -> Dropout:
        return Dropout(
            probability,
            seed=self.seed,
            site=site,
            topology=self.topology,
            stream=self.config.dropout_stream.value,
            sequence_parallel=self.topology.sequence_parallel,
        )

    def norm(self, features: int, *, sequence_parallel: bool) -> LayerNorm | RMSNorm:
        epsilon = self.config.layernorm.layernorm_epsilon
        if self.config.norm_type is NormType.RMS:
            return RMSNorm(features, epsilon=epsilon, dtype=self.dtype, sequence_parallel=sequence_parallel)
        return LayerNorm(features, epsilon=epsilon, dtype=self.dtype, sequence_parallel=sequence_parallel)

    def final_norm(self) -> LayerNormWrapper:
        return LayerNormWrapper(self.norm(self.config.hidden_size, sequence_parallel=self.topology.sequence_parallel))

    def rotary(self) -> RotaryEmbedding | None:
        kind = self.config.relative_position_embedding_type
        if kind is RelativePositionEmbeddingType.NONE:
            return None
        return RotaryEmbedding(
            int(self.shape.head_dim * self.config.rotary_percentage),
            max_seq_length=self.config.sequence_length,
            base=float(self.config.rotary_embedding_base),
            interleaved=kind is RelativePositionEmbeddingType.ROTARY_COMPLEX,
        )

    def attention(self, index: int) -> ParallelSelfAttention:
        attention = ParallelSelfAttention(
            self.shape,
            masks=self.masks,
            rotary=self.rotary(),
            dropout=self.dropout(f"attention_probs.{index}", self.config.dropout_attention_probs),
            topology=self.topology,
            dtype=self.dtype,
            initializer=Normal(self.std),
            sequence_parallel=self.topology.sequence_parallel,
        )
        if not self.config.key_query_norm:
            return attention
        norm_query, norm_key = (self.norm(self.shape.head_dim, sequence_parallel=False) for _ in range(2))
        return attention.with_key_query_norm(norm_query, norm_key)

    def block(self, index: int) -> TransformerLayer:
        hidden, sequence_parallel = self.config.hidden_size, self.topology.sequence_parallel
        mlp = ParallelSwiGLUMLP if self.config.mlp_type is MLPType.SWIGLU else ParallelMLP
        return TransformerLayer(
            input_layernorm=self.norm(hidden, sequence_parallel=sequence_parallel),
            self_attention=self.attention(index),
            post_attention_layernorm=self.norm(hidden, sequence_parallel=sequence_parallel),
            mlp=mlp(
                hidden,
                self.intermediate,
                topology=self.topology,
                bias=self.config.mlp_bias,
                dtype=self.dtype,
                initializer=Normal(self.std),
                sequence_parallel=sequence_parallel,
            ),
            dropout_after_attention=self.dropout(f"after_attention.{index}", self.config.dropout_after_attention),
            dropout_after_mlp=self.dropout(f"after_mlp.{index}", self.config.dropout_after_mlp),
        )
