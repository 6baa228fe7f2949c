"""Embedding cut over the model axis by vocabulary."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
