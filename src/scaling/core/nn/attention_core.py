"""Attention cores: from projected queries, keys and values to the outputs of the heads. Chosen when layers are built.

Shape suffixes: B batch, S sequence, H query heads of this rank, K key-value heads of this rank, D head features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor, nn

from scaling.core.nn.attention_kernels import scaled_dot_product, spelled_out
from scaling.core.nn.attention_masks import DocumentMasks
from scaling.core.nn.dropout import Dropout


class AttentionCore(Protocol):
    """A function that attends. A core that has state or submodules of its own is an `nn.Module` without parameters."""

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]. `document_ids` int32 [b, s] or None and `samples` int64 [b] are whole on every rank."""
        ...


@final
class ScaledDotProduct:
    """Attention by PyTorch's kernels. `scale` multiplies the scores; `masks` is shared by the layers of a rank."""

    def __init__(self, masks: DocumentMasks, *, scale: float) -> None:
        self.masks = masks
        self.scale = scale

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        return scaled_dot_product(q_BSHD, k_BSKD, v_BSKD, self.masks(document_ids, q_BSHD), scale=self.scale)


@final
class SpelledOut:
    """Attention computed step by step, with all scores in memory: on every device, with every option of `Scores`."""

    def __init__(self, masks: DocumentMasks, *, scale: float, cap: float | None = None) -> None:
        self.masks = masks
        self.scale = scale
        self.cap = cap

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        visible = self.masks(document_ids, q_BSHD)
        return spelled_out(q_BSHD, k_BSKD, v_BSKD, visible, scale=self.scale, cap=self.cap)

    def dropped(
        self,
        q_BSHD: Tensor,
        k_BSKD: Tensor,
        v_BSKD: Tensor,
        document_ids: Tensor | None,
        *,
        keep: Tensor,
        probability: float,
    ) -> Tensor:
        """Return [b, s, h, d], without the probabilities for which `keep` [b, h, s, s] is False."""
        visible, scale, cap = self.masks(document_ids, q_BSHD), self.scale, self.cap
        return spelled_out(q_BSHD, k_BSKD, v_BSKD, visible, scale=scale, cap=cap, keep=keep, probability=probability)


@final
class DroppedAttention(nn.Module):
    """Attention with dropout of the probabilities while training, computed step by step; otherwise that of `inner`.

    `heads` are the global numbers of this rank's query heads: the dropout mask is a function of them.
    """

    def __init__(self, inner: AttentionCore, dropout: Dropout, spelled: SpelledOut, *, heads: range) -> None:
        super().__init__()
        self.inner = inner
        self.dropout = dropout
        self.spelled = spelled
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
        return self.spelled.dropped(q_BSHD, k_BSKD, v_BSKD, document_ids, keep=keep, probability=dropout.probability)


@final
class HeadsApart(nn.Module):
    """Attention by one core for some query heads and another for the next ones: with a window and without, say."""

    def __init__(self, parts: Sequence[tuple[int, AttentionCore]]) -> None:
        super().__init__()
        self.sizes = [heads for heads, _ in parts]
        for number, (_, core) in enumerate(parts):
            setattr(self, f"part_{number}", core)  # where `train` and `eval` find a core that is a module

    def forward(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        """Return [b, s, h, d]."""
        group = q_BSHD.shape[2] // k_BSKD.shape[2]
        found, start = [], 0
        for number, size in enumerate(self.sizes):
            core: AttentionCore = getattr(self, f"part_{number}")
            heads = range(start, start + size)
            k, v = (_of_heads(t, heads, group) for t in (k_BSKD, v_BSKD))
            found.append(core(q_BSHD[:, :, start : heads.stop], k, v, document_ids, samples))
            start = heads.stop
        return torch.cat(found, dim=2)


def _of_heads(x_BSKD: Tensor, heads: range, group: int) -> Tensor:
    """Return the keys or values for some query heads; `group` of these share one, which may serve both parts."""
    first, last = heads.start // group, (heads.stop - 1) // group
    if first == last or (heads.start % group == 0 and heads.stop % group == 0):
        return x_BSKD[:, :, first : last + 1]
    return x_BSKD.repeat_interleave(group, dim=2)[:, :, heads.start : heads.stop]
