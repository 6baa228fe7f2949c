"""LoRA and DoRA beside a linear layer, whether its rows or its columns are cut.

Shape suffixes: B leading dimensions, I input features, O output features, R rank, i and o the local parts.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.finetuning.cut import Cut, ParallelLinear
from scaling.core.finetuning.form import LowRankForm
from scaling.core.finetuning.input_dropout import InputDropout
from scaling.core.nn.init import Constant, Uniform
from scaling.core.nn.linear import LinearEdit

_JOINED = 2**24
"""Elements of cut rows that are gathered at once."""


@final
class LowRank(LinearEdit):
    """y_Bo + s (drop(x_BI) A_RI^T) B_oR^T; with `magnitude` rows are scaled by m / |W + s B A| (the norm is detached).

    In a column-parallel layer A is whole on every rank and B is cut like the layer's rows; in a row-parallel layer A is
    cut like the layer's columns and B is whole. Communicates nothing, except with `magnitude` in a row-parallel layer:
    one all-reduce over the model axis, of one number for each row. Beside a half-precision layer it computes in
    float32.

    While dropout is active, DoRA multiplies the layer's own matrix a second time, by the inputs after dropout, as the
    `peft` library does.
    """

    def __init__(
        self, layer: ParallelLinear, form: LowRankForm, *, output: str = "", dropout: InputDropout | None = None
    ) -> None:
        super().__init__()
        self.form = form
        self.cut = cut = Cut.of(layer, output)
        self.dropout = dropout
        self.a = cut.of_inputs(form.rank, Uniform(form.initial_bound(cut.in_features)), layer.place)
        self.b = cut.of_outputs((form.rank,), Constant(0.0), layer.place)
        self.bias = cut.of_outputs((), Constant(0.0), layer.place) if form.bias else None
        self.magnitude = cut.of_outputs((), Constant(1.0), layer.place) if form.magnitude else None
        self._layer = (layer,)  # in a tuple, so that it does not join the module tree

    def within(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the updated product, in the type of `y`."""
        own = y[..., self.cut.span]
        kept = x if self.dropout is None else self.dropout(x)
        if self.magnitude is None:
            return self.cut.replaced(y, self._added(kept, own).to(y.dtype))
        gain = self.magnitude / self._norms()
        if kept is x:
            return self.cut.replaced(y, (gain * self._added(kept, own)).to(y.dtype))
        left = self._layer[0].product(kept, self._weight, None)
        return self.cut.replaced(y, (own + (gain - 1.0) * left + gain * self._added(kept)).to(y.dtype))

    def _added(self, kept: Tensor, own: Tensor | None = None) -> Tensor:
        """Return the update, added to `own` where that is given.

        Thin results are computed as [R, tokens] and [R, out], forward and backward: on a CPU, a product whose result
        has a few long rows takes a third of the time of one with many short rows (1024 tokens, 1536 features, rank 8:
        0.7 against 2.8 ms for the gradient of the inner activations, 0.7 against 4.7 ms for that of B).
        """
        low_RN = self.a @ kept.to(self.a.dtype).reshape(-1, kept.shape[-1]).t()
        b_Ro, scale = self.b.t().contiguous(), self.form.scale
        if own is None:
            sum_No = low_RN.t() @ b_Ro * scale
        else:
            sum_No = torch.addmm(own.to(self.b.dtype).reshape(-1, own.shape[-1]), low_RN.t(), b_Ro, alpha=scale)
        if self.bias is not None:
            sum_No = sum_No + self.bias * (scale / self._terms)
        return sum_No.view(*kept.shape[:-1], b_Ro.shape[1])

    @torch.no_grad()
    def follow_base(self) -> None:
        """Set the magnitudes to the row lengths of the layer's own matrix (B is zero), the same in every layout.

        Cut rows are therefore gathered first, some at a time: rounding of a sum of squares over ranks would depend on
        the cut. Collective in a row-parallel layer: the model axis.
        """
        if self.magnitude is not None:
            chunks = self._weight.split(max(1, _JOINED // self.cut.in_features))
            whole = (_joined(rows, self._group).to(self.b.dtype) for rows in chunks)
            self.magnitude.copy_(torch.cat([row_norms(rows) for rows in whole]))

    @torch.no_grad()
    def merged(self, weight_oi: Tensor) -> Tensor:
        """Return this rank's part of the updated matrix, in the type of the update, given that of the layer's own."""
        updated = weight_oi.to(self.b.dtype) + self.form.scale * (self.b @ self.a)
        return updated if self.magnitude is None else (self.magnitude / self._norms()).unsqueeze(-1) * updated

    @property
    def _terms(self) -> int:
        """Return how many ranks add the bias to the same sum."""
        return self._layer[0].place.parts if self.cut.joins_sum else 1

    @property
    def _group(self) -> ops.Group:
        """Return the group of ranks over which the columns are cut."""
        return self._layer[0].place.group if self.cut.joins_sum else None

    @property
    def _weight(self) -> Tensor:
        return self._layer[0].weight[self.cut.span]

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """Return the lengths of the rows of W + s B A. In a row-parallel layer collective: the model axis."""
        return row_norms(self._weight.to(self.b.dtype), self.a, self.b, self.form.scale, self._group)


@torch.no_grad()
def row_norms(
    weight_oi: Tensor, a_Ri: Tensor | None = None, b_oR: Tensor | None = None, s: float = 1.0, group: ops.Group = None
) -> Tensor:
    """Return the lengths of the rows of W + s B A [o], or of W, without making that matrix.

    |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b^T. Each term is a sum over columns; where each rank of `group`
    has a part of the columns, the squares are summed over the group.
    """
    squares = torch.linalg.vector_norm(weight_oi, dim=1).square()
    if a_Ri is not None and b_oR is not None:
        cross, own = weight_oi @ a_Ri.t(), b_oR @ (a_Ri @ a_Ri.t())
        squares = squares + (b_oR * (2.0 * s * cross + s * s * own)).sum(dim=1)
    return ops.all_reduce(squares, group).sqrt()


def _joined(rows_oi: Tensor, group: ops.Group) -> Tensor:
    """Return the whole rows [o, I], of which each rank of the group has an equal part."""
    if group is None:
        return rows_oi
    parts = rows_oi.new_empty((group.size(), *rows_oi.shape))
    ops.all_gather(parts.flatten(0, 1), rows_oi.contiguous(), group)
    return parts.transpose(0, 1).flatten(1)
