"""Embeddings of tokens, cut over the model axis by vocabulary, and of positions, whole on every rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from scaling.core.errors import LayoutError
from scaling.core.nn.edit import Edit
from scaling.core.nn.init import Normal
from scaling.core.nn.loss import LogitTerm
from scaling.core.nn.parameter import Initializer, new_parameter
from scaling.core.nn.place import Place, leave_model_parallel
from scaling.core.nn.shard import Shard, padded_shard


@dataclass(frozen=True)
class HeadProducts:
    """The summands of a head's logits: hidden weight^T + terms + bias."""

    hidden: Tensor
    """[b, s, embedding_dim], the same on all model ranks."""
    weight: Tensor
    """[v, embedding_dim]: this rank's part of the vocabulary, without padding. v may be 0."""
    terms: tuple[LogitTerm, ...] = ()
    bias: Tensor | None = None
    """[v]."""

    def plus(self, *terms: LogitTerm, bias: Tensor | None = None) -> Self:
        """Return the products with further terms, and with `bias` added."""
        both = self.bias if bias is None else bias if self.bias is None else self.bias + bias
        return replace(self, terms=(*self.terms, *terms), bias=both)


class TableEdit(Edit):
    """A change to a token table from outside: to the embeddings it gives, or to a head whose matrix it is."""

    def embedded(self, term: Tensor, local_ids: Tensor, here: Tensor | None) -> Tensor:
        """Return this rank's term of the embeddings, changed; the terms are then summed over the model axis.

        `local_ids` int64 [b, s] are rows of this rank's part, `here` bool [b, s] says which tokens have a row there
        (None: all).
        """
        return term

    def multiplied(self, products: HeadProducts) -> HeadProducts:
        """Return the summands of the logits, changed."""
        return products


@final
class VocabParallelEmbedding(nn.Module):
    """Look up token ids; each model rank holds a range of the vocabulary.

    Input: int64 [b, s]. Output: [b, s, embedding_dim], under sequence parallelism this rank's slice of s. The
    vocabulary need not be divisible: the last ranks' rows end in padding that no id reaches. Communicates: all-reduce
    (or reduce-scatter) of the output. Ids outside the vocabulary give zero vectors where it is cut: check data where it
    is loaded.
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
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.place = place = place or Place()
        self.shard = padded_shard(num_embeddings, place.parts, place.index, dim=0)
        self.weight = new_parameter(
            (num_embeddings, embedding_dim), initializer or Normal(1.0), shard=self.shard, dtype=place.dtype
        )
        self._edits: tuple[TableEdit, ...] = ()

    def edit(self, name: str, edit: TableEdit) -> None:
        """Let an edit change the table's results, after earlier edits; its parameters are prefixed with `name.`."""
        self.add_module(name, edit)
        self._edits = (*self._edits, edit)

    @property
    def edits(self) -> tuple[TableEdit, ...]:
        """Return all edits, including inactive ones, in the order in which they act."""
        return self._edits

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings of all ids."""
        edits = [edit for edit in self._edits if edit.active]
        if self.place.group is None:
            term = F.embedding(token_ids, self.weight)
            for edit in edits:
                term = edit.embedded(term, token_ids, None)
            return term
        local_ids = token_ids - self.shard.offset
        here = (local_ids >= 0) & (local_ids < self.shard.length)
        local_ids = torch.where(here, local_ids, 0)
        term = F.embedding(local_ids, self.weight) * here.unsqueeze(-1)
        for edit in edits:
            term = edit.embedded(term, local_ids, here)
        return leave_model_parallel(term, self.place)

    def products(self, hidden: Tensor) -> HeadProducts:
        """Return the summands of the logits of `hidden` [b, s, embedding_dim], which is the same on all model ranks."""
        found = HeadProducts(hidden, without_padding(self.weight, self.shard))
        for edit in self._edits:
            if edit.active:
                found = edit.multiplied(found)
        return found


def without_padding(values: Tensor, shard: Shard) -> Tensor:
    """Return this rank's rows of values [v, ...] that are cut over the vocabulary, without padding.

    If there is no padding, return the values themselves: the gradient of a slice would be a second copy of the whole.
    """
    return values if shard.length == values.shape[0] else values[: shard.length]


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
        """Return the vectors of the positions; on a CPU, `LayoutError` for a position that the table does not have."""
        if position_ids.device.type == "cpu" and bool((position_ids >= self.weight.shape[0]).any()):
            raise LayoutError(
                f"position {int(position_ids.max())} is beyond the {self.weight.shape[0]} learned positions; use "
                "shorter sequences"
            )
        if self.place.sequence_parallel:
            position_ids = position_ids.chunk(self.place.parts, dim=1)[self.place.index]
        return F.embedding(position_ids, self.weight)
