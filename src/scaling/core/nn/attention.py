"""Multi-head, grouped-query and multi-query self-attention, heads cut over the model axis.

Shape suffixes: B batch, S sequence, E hidden, H query heads of this rank, K key-value heads of this rank, D head
features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.attention_kernels import (
    DocumentMasks,
    FlashAttention,
    KeyValueCache,
    cached_documents,
    flash_attention_available,
    scaled_dot_product,
    spelled_out,
)
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear, enter_model_parallel
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.parameter import Initializer, Shard, update_meta
from scaling.core.nn.rotary import RotaryEmbedding
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Sizes and options of a self-attention layer; everything about the whole layer, nothing about a rank."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None
    """None = as many as heads, with queries, keys and values in one fused matrix if `fused`."""
    fused: bool = True
    bias: bool = True
    causal: bool = True
    scale: float = 1.0
    """Multiplies the scores on top of 1 / sqrt(head features)."""
    kernel: Literal["torch", "flash_attention"] = "torch"
    deterministic: bool = False

    @property
    def head_dim(self) -> int:
        """Return the features per head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Return the number of key-value heads of the whole layer."""
        return self.num_kv_heads or self.num_heads


def kv_shard(kv_heads: int, head_dim: int, parts: int, index: int) -> Shard:
    """Return which key and value rows model rank `index` of `parts` holds; ranks share heads if there are too few."""
    if kv_heads % parts == 0:
        length = kv_heads // parts * head_dim
        return Shard(dim=0, offset=index * length, length=length, local_length=length)
    if parts % kv_heads:
        raise LayoutError(
            f"attention_num_kv_heads ({kv_heads}) and model_parallel_size ({parts}) must divide one the other; "
            f"choose a model_parallel_size that divides or is a multiple of {kv_heads}"
        )
    replicas = parts // kv_heads
    return Shard(dim=0, offset=index // replicas * head_dim, length=head_dim, local_length=head_dim, replicas=replicas)


@final
class ParallelSelfAttention(nn.Module):
    """Self-attention over packed documents; each model rank computes its heads.

    A fused `query_key_value` weight has its rows grouped by head, [q | k | v] of head_dim rows each, so that a cut by
    heads is a cut of rows, whatever the model-parallel size. With `num_kv_heads` the projections are separate, and
    where there are fewer key-value heads than ranks, neighbouring ranks hold the same head and sum its gradient.
    Communicates: one all-reduce forward and one backward (or their sequence-parallel halves). Sources:
    arXiv:1706.03762 (attention), arXiv:1911.02150 (multi-query), arXiv:2305.13245 (grouped-query), arXiv:1909.08053
    section 3 (cut by heads).
    """

    def __init__(
        self,
        shape: AttentionShape,
        *,
        masks: DocumentMasks,
        rotary: RotaryEmbedding | None = None,
        dropout: Dropout | None = None,
        topology: Topology | None = None,
        dtype: torch.dtype = torch.float32,
        initializer: Initializer | None = None,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.topology = topology = topology or Topology.single()
        self.sequence_parallel = sequence_parallel
        self.masks = masks
        self.rotary = rotary
        self.dropout_probabilities = dropout
        self.norm_query: LayerNorm | RMSNorm | None = None
        self.norm_key: LayerNorm | RMSNorm | None = None
        parts, index = topology.size(Axis.MODEL), topology.index(Axis.MODEL)
        if shape.num_heads % parts:
            raise LayoutError(
                f"num_attention_heads ({shape.num_heads}) must be divisible by model_parallel_size ({parts})"
            )
        self.local_heads = range(shape.num_heads // parts * index, shape.num_heads // parts * (index + 1))
        self.fused = shape.fused and shape.num_kv_heads is None

        def project(rows: int, shard: Shard | None = None) -> ColumnParallelLinear:
            return ColumnParallelLinear(
                shape.hidden_size,
                rows,
                topology=topology,
                bias=shape.bias,
                dtype=dtype,
                initializer=initializer,
                shard=shard,
                copy_input=False,
            )

        if self.fused:
            self.query_key_value = project(3 * shape.hidden_size)
        else:
            kv_rows = shape.kv_heads * shape.head_dim
            shard = kv_shard(shape.kv_heads, shape.head_dim, parts, index)
            self.query = project(shape.hidden_size)
            self.key = project(kv_rows, shard)
            self.value = project(kv_rows, shard)
        self.dense = RowParallelLinear(
            shape.hidden_size,
            shape.hidden_size,
            topology=topology,
            bias=shape.bias,
            dtype=dtype,
            initializer=initializer,
            sequence_parallel=sequence_parallel,
        )
        self.cache: KeyValueCache | None = None
        """While generating: what earlier calls have seen. Set and cleared by the inference module."""
        self._flash: FlashAttention | None = None
        if shape.kernel == "flash_attention" and flash_attention_available(topology.device, dtype):
            self._flash = FlashAttention(causal=shape.causal, deterministic=shape.deterministic)

    def with_key_query_norm(
        self, norm_query: LayerNorm | RMSNorm, norm_key: LayerNorm | RMSNorm
    ) -> ParallelSelfAttention:
        """Normalise queries and keys per head (arXiv:2302.05442). A model rank sees the gradient of its heads only."""
        self.norm_query, self.norm_key = norm_query, norm_key
        for norm in (norm_query, norm_key):
            for parameter in norm.parameters():
                update_meta(parameter, sum_grad_over_model=True)
        return self

    def forward(self, x_BSE: Tensor, position_ids: Tensor, document_ids: Tensor | None, samples: Tensor) -> Tensor:
        """Return the attention output, shaped as `x_BSE` (under sequence parallelism both are slices of the sequence).

        `position_ids` int64 [b, s], `document_ids` int32 [b, s] or None and `samples` int64 [b] are whole on every
        rank.
        """
        x_BSE = enter_model_parallel(x_BSE, self.topology, sequence_parallel=self.sequence_parallel)
        q_BSHD, k_BSKD, v_BSKD = self._project(x_BSE)
        if self.norm_query is not None and self.norm_key is not None:
            q_BSHD, k_BSKD = self.norm_query(q_BSHD), self.norm_key(k_BSKD)
        if self.rotary is not None:
            angles = self.rotary.angles(position_ids, q_BSHD.dtype)
            q_BSHD, k_BSKD = self.rotary(q_BSHD, angles), self.rotary(k_BSKD, angles)
        out_BSHD = self._attend(q_BSHD, k_BSKD, v_BSKD, document_ids, samples)
        return self.dense(out_BSHD.flatten(2))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any

    def _project(self, x_BSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head_dim = self.shape.head_dim
        if self.fused:
            by_head = self.query_key_value(x_BSE).unflatten(-1, (len(self.local_heads), 3, head_dim))
            q, k, v = by_head.unbind(-2)
            return q, k, v
        return (
            self.query(x_BSE).unflatten(-1, (-1, head_dim)),
            self.key(x_BSE).unflatten(-1, (-1, head_dim)),
            self.value(x_BSE).unflatten(-1, (-1, head_dim)),
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor | None, samples: Tensor) -> Tensor:
        scale = self.shape.scale / math.sqrt(self.shape.head_dim)
        dropout = self.dropout_probabilities
        if dropout is not None and dropout.active:
            length = q.shape[1]
            if dropout.stream == "layout_invariant":
                keep = dropout.scores_mask(samples, heads=self.local_heads, queries=length, keys=length)
            else:
                with self.topology.rng.stream("sharded"):
                    drawn = torch.rand(q.shape[0], q.shape[2], length, length, device=q.device)
                keep = drawn >= dropout.probability
            documents = self.masks(document_ids)
            return spelled_out(q, k, v, documents, scale=scale, keep=keep, probability=dropout.probability)
        if self.cache is not None:
            k, v = self.cache.append(k, v)
            return scaled_dot_product(q, k, v, cached_documents(q.shape[1], k.shape[1], q.device), scale=scale)
        if self._flash is not None:
            return self._flash(q, k, v, document_ids, scale=scale)
        return scaled_dot_product(q, k, v, self.masks(document_ids), scale=scale)
