"""Norms of queries and keys before they are rotated: within each head, or over all heads of all model ranks.

Shape suffixes: B batch, S sequence, H query heads of this rank, K key-value heads of this rank, D head features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor, nn

from scaling.core.collectives.autograd import copy_to_model, reduce_from_model
from scaling.core.nn.init import Constant
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.parameter import new_parameter, share
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import SAME_IN_PARTS


class KeyQueryNorm(Protocol):
    """The normalisation that attention applies to queries and keys before it rotates them."""

    @property
    def query(self) -> nn.Module:
        """Return the module with the parameters for queries, `norm_query` in attention."""
        ...

    @property
    def key(self) -> nn.Module:
        """Return the module with the parameters for keys, `norm_key` in attention."""
        ...

    def __call__(self, q_BSHD: Tensor, k_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised queries and keys; the sequence is whole on every rank."""
        ...


@final
@dataclass(frozen=True)
class NormPerHead:
    """Each head normalised by itself, all heads with the same weights (arXiv:2302.05442). Communicates nothing."""

    query: LayerNorm | RMSNorm
    key: LayerNorm | RMSNorm

    def __post_init__(self) -> None:
        """Record that a model rank sees the gradient of its own heads only."""
        for norm in (self.query, self.key):
            for parameter in norm.parameters():
                share(parameter, Axis.MODEL, SAME_IN_PARTS)

    def __call__(self, q_BSHD: Tensor, k_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised queries and keys."""
        return self.query(q_BSHD), self.key(k_BSKD)


@final
class RMSNormOverHeads(nn.Module):
    """RMSNorm over the features of all heads, including those of other model ranks (OLMo 2, arXiv:2501.00656).

    The weight has a number for each feature of each head and is cut as the projection's rows are, between heads; ranks
    that share a head hold the same part and sum its gradient. `weight_offset` is that of `RMSNorm`. The sum of squares
    is the sum of the ranks' `term`; `NormOverHeads` sums the terms of queries and keys in one message.
    """

    def __init__(
        self, heads: Heads, *, epsilon: float = 1e-5, place: Place | None = None, weight_offset: float = 0.0
    ) -> None:
        super().__init__()
        self.place = place = place or Place()
        self.epsilon = epsilon
        self.weight_offset = weight_offset
        shard = heads.shard(place.parts, place.index)
        self._features, self._holders = heads.features, shard.replicas
        self.weight = new_parameter(
            (heads.features,),
            Constant(1.0 - weight_offset),
            shard=shard,
            dtype=place.dtype,
            gradient_in_parts=shard.replicas > 1,
        )

    def term(self, x_BSHD: Tensor) -> Tensor:
        """Return this rank's term [b, s, 1, 1] of the sum of squares; each rank that shares a head has a part of it."""
        return _wide(x_BSHD).square().sum((-2, -1), keepdim=True) / self._holders

    def forward(self, x_BSHD: Tensor, squares_BS11: Tensor) -> Tensor:
        """Return this rank's heads, normalised by the sum of squares over all heads; half precision in float32."""
        weight_HD = self.weight_offset + _wide(self.weight).view(x_BSHD.shape[-2:])
        scale_BS11 = (squares_BS11 / self._features + self.epsilon).rsqrt()
        return (_wide(x_BSHD) * scale_BS11 * weight_HD).to(x_BSHD.dtype)


@final
@dataclass(frozen=True)
class NormOverHeads:
    """Queries and keys, each normalised over all heads. Communicates: one all-reduce forward, one backward for both."""

    query: RMSNormOverHeads
    key: RMSNormOverHeads

    def __call__(self, q_BSHD: Tensor, k_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised queries and keys. Collective: the model axis."""
        group = self.query.place.group
        terms = torch.stack([self.query.term(q_BSHD), self.key.term(k_BSKD)])
        # Each rank scales its own heads by the sum, so that the sum's gradient is in parts too.
        of_queries, of_keys = copy_to_model(reduce_from_model(terms, group), group)
        return self.query(q_BSHD, of_queries), self.key(k_BSKD, of_keys)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
