"""Edits of a token table, as an embedding and as the matrix of a head: LoRA, DoRA and single rows.

Shape suffixes: v the local part of the vocabulary, with padding, H features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.finetuning.cut import added_dtype
from scaling.core.finetuning.form import LowRankForm
from scaling.core.finetuning.input_dropout import InputDropout
from scaling.core.finetuning.low_rank import row_norms
from scaling.core.nn.embedding import HeadProducts, TableEdit, VocabParallelEmbedding
from scaling.core.nn.init import Constant, Normal, Uniform
from scaling.core.nn.linear import linear
from scaling.core.nn.loss import LogitTerm
from scaling.core.nn.parameter import new_parameter


@final
class LowRankEmbedding(TableEdit):
    """e(t) + s B A_t: A [R, V] is cut like the vocabulary, B [H, R] is whole. Communicates nothing.

    Each rank's update joins the sum over the model axis, so that a rank has a part of the gradient of B. There is no
    dropout. A starts at zero, B with normal values, as in the `peft` library.
    """

    def __init__(self, table: VocabParallelEmbedding, form: LowRankForm) -> None:
        super().__init__()
        self.form = form
        vocabulary, features = table.num_embeddings, table.embedding_dim
        dtype, columns = added_dtype(table.place), replace(table.shard, dim=1)
        self.a = new_parameter((form.rank, vocabulary), Constant(0.0), shard=columns, dtype=dtype)
        self.b = new_parameter((features, form.rank), Normal(1.0), dtype=dtype, gradient_in_parts=True)

    def embedded(self, term: Tensor, local_ids: Tensor, here: Tensor | None) -> Tensor:
        """Return this rank's term of the embeddings plus that of the update, in the type of `term`."""
        own = F.embedding(local_ids, self.a.t()) * self.form.scale
        update = linear(own if here is None else own * here.unsqueeze(-1), self.b)
        return (term + update).to(term.dtype)

    @torch.no_grad()
    def merged(self, weight_vH: Tensor) -> Tensor:
        """Return the updated rows of this rank, in the type of the update."""
        return weight_vH.to(self.b.dtype) + self.form.scale * (self.b @ self.a).t()


@final
class LowRankHead(TableEdit):
    """Logits h W^T + s (drop(h) A^T) B^T: A [R, H] is whole, B [V, R] is cut like the vocabulary. Communicates nothing.

    Each rank has the part of A's gradient that comes from its part of the vocabulary. DoRA works as in `LowRank`.
    """

    def __init__(
        self, table: VocabParallelEmbedding, form: LowRankForm, *, dropout: InputDropout | None = None
    ) -> None:
        super().__init__()
        self.form = form
        self.dropout = dropout
        vocabulary, features = table.num_embeddings, table.embedding_dim
        dtype, start = added_dtype(table.place), Uniform(form.initial_bound(features))

        def by_token(others: tuple[int, ...], value: float) -> torch.nn.Parameter:
            return new_parameter((vocabulary, *others), Constant(value), shard=table.shard, dtype=dtype)

        self.a = new_parameter((form.rank, features), start, dtype=dtype, gradient_in_parts=True)
        self.b = by_token((form.rank,), 0.0)
        self.bias = by_token((), 0.0) if form.bias else None
        self.magnitude = by_token((), 1.0) if form.magnitude else None
        self._table = (table,)  # in a tuple, so that it does not join the module tree

    def multiplied(self, products: HeadProducts) -> HeadProducts:
        """Return the terms that the logits are the sum of, with the update."""
        hidden, weight = products.hidden, products.weight
        rows, kept = weight.shape[0], hidden if self.dropout is None else self.dropout(hidden)
        down = linear(kept.to(self.a.dtype), self.a) * self.form.scale
        bias = None if self.bias is None else self.bias[:rows] * self.form.scale
        if self.magnitude is None:
            return products.plus(LogitTerm(down, self.b[:rows]), bias=bias)
        gain = (self.magnitude[:rows] / self._norms(weight)).unsqueeze(-1)
        update = LogitTerm(down, gain * self.b[:rows])
        if kept is hidden:
            return replace(products, weight=gain * weight).plus(update, bias=bias)
        return products.plus(LogitTerm(kept.to(gain.dtype), (gain - 1.0) * weight), update, bias=bias)

    @torch.no_grad()
    def follow_base(self) -> None:
        """Set the magnitudes to the lengths of the rows of the head's own matrix (B is zero)."""
        if self.magnitude is not None:
            weight = self._table[0].weight
            self.magnitude.copy_(row_norms(weight.to(self.b.dtype)))

    @torch.no_grad()
    def merged(self, weight_vH: Tensor) -> Tensor:
        """Return the updated rows of this rank, in the type of the update."""
        own, update = self.terms(weight_vH)
        return own + update

    @torch.no_grad()
    def terms(self, weight_vH: Tensor) -> tuple[Tensor, Tensor]:
        """Return this rank's own rows, scaled, and the update to add to them or to the rows that replace them."""
        own, update = weight_vH.to(self.b.dtype), self.form.scale * (self.b @ self.a)
        if self.magnitude is None:
            return own, update
        gain = (self.magnitude / self._norms(weight_vH)).unsqueeze(-1)
        return gain * own, gain * update

    def _norms(self, weight_vH: Tensor) -> Tensor:
        return row_norms(weight_vH.to(self.b.dtype), self.a, self.b[: weight_vH.shape[0]], self.form.scale)


@final
class TokenRows(TableEdit):
    """Rows for some tokens that replace the table's, which stays unchanged. Communicates nothing in a step.

    Every model rank holds all rows, and uses those of the tokens in its part of the vocabulary, so that it has a part
    of the gradient. The rows start as copies of the table's rows.
    """

    def __init__(self, table: VocabParallelEmbedding, tokens: Sequence[int], *, std: float) -> None:
        super().__init__()
        self.weight = new_parameter(
            (len(tokens), table.embedding_dim),
            Normal(std),
            dtype=added_dtype(table.place),
            gradient_in_parts=True,
        )
        first, length = table.shard.offset, table.shard.length
        own = [(token - first, row) for row, token in enumerate(tokens) if first <= token < first + length]
        places, rows = (torch.tensor([pair[side] for pair in own], dtype=torch.int64) for side in (0, 1))
        row_of = torch.full((table.weight.shape[0],), -1, dtype=torch.int64)
        row_of[places] = rows
        # Buffers, so that they are on the device when a step needs them.
        self.places: Tensor
        """Places, in this rank's part of the table, of the chosen tokens that are in it."""
        self.rows: Tensor
        """Rows of the edit for these tokens."""
        self.row_of: Tensor
        """Row of the edit for each row of this rank's part of the table; -1 where there is none."""
        for name, values in (("places", places), ("rows", rows), ("row_of", row_of)):
            self.register_buffer(name, values, persistent=False)
        self._table = (table,)  # in a tuple, so that it does not join the module tree

    def embedded(self, term: Tensor, local_ids: Tensor, here: Tensor | None) -> Tensor:
        """Return this rank's term of the embeddings with the rows, in the type of `term`."""
        rows = self.row_of[local_ids]
        own = rows >= 0 if here is None else (rows >= 0) & here
        vectors = F.embedding(torch.where(own, rows, 0), self.weight).to(term.dtype)
        return torch.where(own.unsqueeze(-1), vectors, term)

    def multiplied(self, products: HeadProducts) -> HeadProducts:
        """Return the terms of the logits, with one more for the tokens: the difference of the rows, times hidden."""
        if not len(self.rows):
            return products
        hidden, weight = products.hidden, products.weight
        difference = self.weight[self.rows] - weight[self.places].to(self.weight.dtype)
        # [v, n]: each token's logit gets its own product only.
        chosen = self.places.unsqueeze(0) == torch.arange(weight.shape[0], device=weight.device).unsqueeze(1)
        return products.plus(LogitTerm(linear(hidden.to(difference.dtype), difference), chosen.to(difference.dtype)))

    @torch.no_grad()
    def follow_base(self) -> None:
        """Set the rows to the table's, by an all-reduce over the model axis, since each rank knows its own part."""
        rows = torch.zeros_like(self.weight)
        rows[self.rows] = self._table[0].weight[self.places].to(rows.dtype)
        self.weight.copy_(ops.all_reduce(rows, self._table[0].place.group))

    @torch.no_grad()
    def merged(self, weight_vH: Tensor) -> Tensor:
        """Return this rank's part of the table with the rows in it, in the type of the rows."""
        merged = weight_vH.to(self.weight.dtype, copy=True)
        merged[self.places] = self.weight[self.rows]
        return merged
