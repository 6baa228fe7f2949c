"""Embeddings: of tokens, cut over the model axis by vocabulary, and of positions, whole on every rank."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.init import Normal
from scaling.core.nn.parameter import Initializer, new_parameter
from scaling.core.nn.place import Place, leave_model_parallel
from scaling.core.nn.shard import padded_shard


@final
class VocabParallelEmbedding(nn.Module):
    """Look up token ids; each model rank holds a range of the vocabulary.

    Input: int64 [b, s]. Output: [b, s, embedding_dim], under sequence parallelism this rank's slice of s. The
    vocabulary need not be divisible: the last ranks' rows are filled up with padding that no id reaches. Communicates:
    all-reduce (or reduce-scatter) of the output. Ids outside the vocabulary give zero vectors: check data where it is
    loaded.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        place: Place | None = None,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__()
        self.place = place = place or Place()
        self.shard = padded_shard(num_embeddings, place.parts, place.index, dim=0)
        self.weight = new_parameter(
            (num_embeddings, embedding_dim), initializer or Normal(1.0), shard=self.shard, dtype=place.dtype
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings of all ids."""
        if self.place.group is None:
            return F.embedding(token_ids, self.weight)
        local_ids = token_ids - self.shard.offset
        here = (local_ids >= 0) & (local_ids < self.shard.length)
        partial = F.embedding(torch.where(here, local_ids, 0), self.weight) * here.unsqueeze(-1)
        return leave_model_parallel(partial, self.place)


@final
class PositionEmbedding(nn.Module):
    """Look up a learned vector for each position (Radford et al., GPT-2, 2019).

    Input: int64 [b, s]. Output: [b, s, embedding_dim], under sequence parallelism this rank's slice of s, so that each
    model rank sees a part of the gradient.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        place: Place | None = None,
        initializer: Initializer | None = None,
    ) -> None:
        super().__init__()
        self.place = place = place or Place()
        self.weight = new_parameter(
            (num_embeddings, embedding_dim),
            initializer or Normal(1.0),
            dtype=place.dtype,
            gradient_in_parts=place.sequence_parallel,
        )

    def forward(self, position_ids: Tensor) -> Tensor:
        """Return the vectors of the positions; `LayoutError` on a CPU for one that the table does not have."""
        if position_ids.device.type == "cpu" and bool((position_ids >= self.weight.shape[0]).any()):
            raise LayoutError(
                f"position {int(position_ids.max())} is beyond the {self.weight.shape[0]} learned positions; use "
                "shorter sequences"
            )
        if self.place.sequence_parallel:
            position_ids = position_ids.chunk(self.place.parts, dim=1)[self.place.index]
        return F.embedding(position_ids, self.weight)
