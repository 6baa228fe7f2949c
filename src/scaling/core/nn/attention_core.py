"""Attention cores: from projected queries, keys and values to what the heads put out. One is chosen when built.

Shape suffixes: B batch, S sequence, H query heads of this rank, K key-value heads of this rank, D head features.
"""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from scaling.core.nn.attention_kernels import (
    DocumentMasks,
    cached_documents,
    document_bounds,
    scaled_dot_product,
    spelled_out,
)
from scaling.core.nn.dropout import Dropout


class AttentionCore(Protocol):
    """Attends. A core that has state or submodules of its own is an `nn.Module` without parameters."""

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]. `document_ids` int32 [b, s] or None and `samples` int64 [b] are whole on every rank."""
        ...


@final
class ScaledDotProduct:
    """PyTorch's kernels. `scale` multiplies the scores; `masks` is shared by the layers of a rank."""

    def __init__(self, masks: DocumentMasks, *, scale: float) -> None:
        self.masks = masks
        self.scale = scale

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        return scaled_dot_product(q_BSHD, k_BSKD, v_BSKD, self.masks(document_ids), scale=self.scale)


@final
class FlashAttention:
    """flash-attn's kernel for packed documents (Dao, arXiv:2307.08691): no mask in memory, work only inside documents.

    Needs the optional package flash-attn, a GPU and half precision (`flash_attention_available`).
    """

    def __init__(self, *, scale: float, causal: bool, deterministic: bool) -> None:
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        self._dense: Any = flash_attn_func
        self._packed: Any = flash_attn_varlen_func
        self._options = {"softmax_scale": scale, "causal": causal, "deterministic": deterministic}

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        if document_ids is None:
            dense: Tensor = self._dense(q_BSHD, k_BSKD, v_BSKD, **self._options)
            return dense
        length, bounds = q_BSHD.shape[1], document_bounds(document_ids)
        q, k, v = (tensor.flatten(0, 1) for tensor in (q_BSHD, k_BSKD, v_BSKD))
        packed: Tensor = self._packed(q, k, v, bounds, bounds, length, length, **self._options)
        return packed.view_as(q_BSHD)


@final
class DroppedAttention(nn.Module):
    """Attention whose probabilities are dropped while training, step by step; else that of another core.

    `heads` are the global numbers of this rank's query heads: a mask is a function of them.
    """

    def __init__(
        self, inner: AttentionCore, dropout: Dropout, masks: DocumentMasks, *, scale: float, heads: range
    ) -> None:
        super().__init__()
        self.inner = inner
        self.dropout = dropout
        self.masks = masks
        self.scale = scale
        self.heads = heads

    def forward(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        dropout = self.dropout
        if not dropout.active:
            return self.inner(q_BSHD, k_BSKD, v_BSKD, document_ids, samples)
        length = q_BSHD.shape[1]
        if dropout.stream == "layout_invariant":
            keep = dropout.scores_mask(samples, heads=self.heads, queries=length, keys=length)
        else:
            with dropout.place.topology.rng.stream("sharded"):
                drawn = torch.rand(q_BSHD.shape[0], q_BSHD.shape[2], length, length, device=q_BSHD.device)
            keep = drawn >= dropout.probability
        documents = self.masks(document_ids)
        return spelled_out(
            q_BSHD, k_BSKD, v_BSKD, documents, scale=self.scale, keep=keep, probability=dropout.probability
        )


class KeyValueCache:
    """Keys and values of the positions generated so far, one document per row, in buffers that double when full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k_BSKD: Tensor, v_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions and return all of them."""
        stop = self.length + k_BSKD.shape[1]
        self._keys = self._grown(self._keys, k_BSKD, stop)
        self._values = self._grown(self._values, v_BSKD, stop)
        self._keys[:, self.length : stop] = k_BSKD
        self._values[:, self.length : stop] = v_BSKD
        self.length = stop
        return self._keys[:, :stop], self._values[:, :stop]

    def _grown(self, buffer: Tensor | None, like: Tensor, length: int) -> Tensor:
        if buffer is not None and buffer.shape[1] >= length:
            return buffer
        grown = like.new_zeros(like.shape[0], max(length, 2 * self.length), *like.shape[2:])
        if buffer is not None:
            grown[:, : self.length] = buffer[:, : self.length]
        return grown


@final
class CachedAttention:
    """Attention of new positions to all before them, whose keys and values `cache` keeps. A row is one document."""

    def __init__(self, cache: KeyValueCache, *, scale: float) -> None:
        self.cache = cache
        self.scale = scale

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        keys, values = self.cache.append(k_BSKD, v_BSKD)
        documents = cached_documents(q_BSHD.shape[1], keys.shape[1], q_BSHD.device)
        return scaled_dot_product(q_BSHD, keys, values, documents, scale=self.scale)
