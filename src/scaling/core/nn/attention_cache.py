"""Attention of generation: the keys and values of earlier positions are kept, and new positions attend to them.

Shape suffixes: B batch, S sequence, H query heads, K key-value heads, D head features.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scaling.core.nn.attention_core import AttentionCore, HeadsApart
from scaling.core.nn.attention_kernels import scaled_dot_product, spelled_out
from scaling.core.nn.attention_masks import Visible, band
from scaling.core.nn.scores import Scores


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
    """Attention of new positions to all before them, whose keys and values `cache` keeps. A row is one document.

    `heads` are the global numbers of the query heads, of which some may have a window and others not.
    """

    def __init__(self, cache: KeyValueCache, scores: Scores, *, heads: range) -> None:
        self.cache = cache
        parts = [(len(own), LastPositions(of)) for own, of in scores.of_heads(heads)]
        (_, one), *others = parts
        self._attend: AttentionCore = HeadsApart(parts) if others else one

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        keys, values = self.cache.append(k_BSKD, v_BSKD)
        return self._attend(q_BSHD, keys, values, document_ids, samples)


@final
class LastPositions:
    """Causal attention of the last positions of a document, of which there are more keys than queries."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        scores, queries = self.scores, q_BSHD.shape[1]
        if scores.window is not None:  # nobody sees the others
            k_BSKD, v_BSKD = (t[:, -(queries + scores.window - 1) :] for t in (k_BSKD, v_BSKD))
        visible = _last_positions(queries, k_BSKD.shape[1], scores.window, q_BSHD.device)
        if scores.cap is None:
            return scaled_dot_product(q_BSHD, k_BSKD, v_BSKD, visible, scale=scores.scale)
        return spelled_out(q_BSHD, k_BSKD, v_BSKD, visible, scale=scores.scale, cap=scores.cap)


def _last_positions(queries: int, keys: int, window: int | None, device: torch.device) -> Visible:
    """Return what the last `queries` of `keys` positions see. There are no keys here that nobody sees."""
    if queries == 1:
        return Visible(None, causal=False)
    if queries == keys and (window is None or window >= keys):
        return Visible(None, causal=True)
    return Visible(band(queries, keys, causal=True, window=window, device=device), causal=True)
