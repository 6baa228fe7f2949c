"""Cross entropy over a vocabulary cut over the model axis, without gathering the logits, or even computing all at once.

Shape suffixes: N positions, n those of a chunk, v the local part of the vocabulary, H features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaling.core.collectives import ops
from scaling.core.collectives.ops import Group
from scaling.core.nn.linear import linear

IGNORED = -100  # what torch.nn.functional.cross_entropy ignores
_HALF = (torch.bfloat16, torch.float16)
_ROWS = 8192
"""Rows of a half-precision weight whose gradient is computed at a time, before it is added in float32."""


class TokenLosses(NamedTuple):
    """The results of a cross entropy for each position."""

    losses: Tensor
    """-log softmax(logits)[target], in at least float32; 0 where the target is ignored."""
    log_normalisers: Tensor | None
    """log Z = log sum exp(logits), in the same type; 0 where the target is ignored. None if not requested."""


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_Nv: Tensor, targets_N: Tensor, offset: int, group: Group) -> tuple[Tensor, Tensor]:
        positions, local = logits_Nv.shape
        if local:
            highest_N = logits_Nv.max(dim=-1).values
        else:  # this rank's range of the vocabulary is all padding
            highest_N = logits_Nv.new_full((positions,), -torch.inf)
        ops.all_reduce(highest_N, group, maximum=True)
        exp_Nv = (logits_Nv - highest_N.unsqueeze(-1)).exp_()
        here_N, index_N1 = places(targets_N, offset, local)
        # One message: the local sums of exponentials, and the target's logit from the one rank that holds it.
        sums = torch.stack([exp_Nv.sum(dim=-1), torch.zeros_like(highest_N)])
        if local:
            own = logits_Nv.gather(-1, index_N1).squeeze(-1) - highest_N
            sums[1] = torch.where(here_N, own, 0.0)
        ops.all_reduce(sums, group)
        total_N, target_logit_N = sums
        softmax_Nv = exp_Nv.div_(total_N.unsqueeze(-1))
        ctx.save_for_backward(softmax_Nv, here_N, index_N1)
        log_total_N = total_N.log()
        return log_total_N - target_logit_N, highest_N + log_total_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, grad_normaliser_N: Tensor) -> tuple[Tensor, None, None, None]:
        softmax_Nv, here_N, index_N1 = ctx.saved_tensors
        grad_Nv = softmax_Nv * (grad_N + grad_normaliser_N).unsqueeze(-1)
        if grad_Nv.shape[-1]:
            grad_Nv.scatter_add_(-1, index_N1, -(grad_N * here_N).unsqueeze(-1))
        return grad_Nv, None, None, None


def places(targets_N: Tensor, offset: int, local: int) -> tuple[Tensor, Tensor]:
    """Return which targets this rank's range of the vocabulary has, and where in it (0 for the others)."""
    local_targets_N = targets_N - offset
    here_N = (local_targets_N >= 0) & (local_targets_N < local)
    return here_N, torch.where(here_N, local_targets_N, 0).unsqueeze(-1)


def joined_sums(own_N: Tensor, sums_2N: Tensor, here_N: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest logits, and relative to them the sums of exponentials and the targets' logits, over all ranks.

    `own_N`: the highest logits of this rank; `sums_2N`, which is overwritten: its sums of exponentials relative to
    `own_N`, and the targets' logits, valid where `here_N` says that this rank has them. Collective over `group`: a
    maximum, and a sum of two numbers, per position.
    """
    highest_N = ops.all_reduce(own_N.clone(), group, maximum=True)
    sums_2N[0] *= (own_N - highest_N).exp_()
    sums_2N[1] = torch.where(here_N, sums_2N[1] - highest_N, 0.0)
    total_N, target_logit_N = ops.all_reduce(sums_2N, group)
    return highest_N, total_N, target_logit_N


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, *, group: Group = None, offset: int = 0) -> Tensor:
    """Return -log softmax(logits)[target] per position, in at least float32; 0 where the target is -100, as torch does.

    `logits` [..., local vocabulary] hold this rank's range starting at `offset`; `targets` int64 [...] are global ids.
    Collective over `group`: one maximum and one sum of two numbers per position; the logits stay where they are
    (Megatron-LM, arXiv:1909.08053, section 3). Backward communicates nothing.
    """
    if group is not None:
        return _of_logits(logits, targets, group, offset).losses
    flat = _wide(logits.reshape(targets.numel(), logits.shape[-1]))
    return F.cross_entropy(flat, targets.reshape(-1), reduction="none").view(targets.shape)


def _of_logits(logits: Tensor, targets: Tensor, group: Group, offset: int) -> TokenLosses:
    function: Any = _VocabParallelCrossEntropy.apply
    flat = _wide(logits.reshape(targets.numel(), logits.shape[-1]))
    return _counted(function(flat, targets.reshape(-1), offset, group), targets)


def _counted(found: tuple[Tensor, Tensor], targets: Tensor) -> TokenLosses:
    losses, normalisers = (each.view(targets.shape).masked_fill(targets == IGNORED, 0.0) for each in found)
    return TokenLosses(losses, normalisers)


class LogitTerm(NamedTuple):
    """A product hidden weight^T, besides the head's own, that is added to the logits."""

    hidden: Tensor
    """[..., f], with as many positions as the head's hidden states; like these, the same on all ranks of the group."""
    weight: Tensor
    """[v, f], cut over the vocabulary as the head's weight is."""


def linear_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    terms: Sequence[LogitTerm] = (),
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """Return cap * tanh(scale * x / cap) of x = hidden weight^T + terms + bias, in at least float32; no cap: scale * x.

    Half precision is multiplied as in any linear layer; terms are added, and scale and cap applied, in the result's
    type.
    """
    if terms:
        logits = _wide(linear(hidden.reshape(-1, hidden.shape[-1]), weight, bias))
        for term in terms:  # added in place: another sum would be as large as the logits
            logits.addmm_(
                term.hidden.reshape(-1, term.hidden.shape[-1]).to(logits.dtype), term.weight.to(logits.dtype).T
            )
        logits = logits.view(*hidden.shape[:-1], weight.shape[0])
    elif bias is None and not torch.is_grad_enabled() and _few(hidden):
        logits = _wide(linear(weight, hidden.reshape(-1, hidden.shape[-1])).t().contiguous())
        logits = logits.view(*hidden.shape[:-1], weight.shape[0])
    else:
        logits = _wide(linear(hidden, weight, bias))
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else (logits / cap).tanh() * cap


def _few(hidden: Tensor) -> bool:
    """Return whether a CPU multiplies faster with the vocabulary as the rows of the product, as in the weight."""
    return hidden.device.type == "cpu" and 2 <= hidden.shape[:-1].numel() <= 16


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    terms: Sequence[LogitTerm] = (),
    scale: float = 1.0,
    cap: float | None = None,
    group: Group = None,
    offset: int = 0,
    chunk_size: int | None = None,
    normalisers: bool = False,
) -> TokenLosses:
    """Return the cross entropy of `linear_logits` per position, and with `normalisers` their log Z.

    `hidden` [..., features] are the same on all ranks of `group`; `weight` [v, features] and `bias` [v] are this rank's
    range of the vocabulary, which starts at `offset`; `targets` int64 [...] are global ids, -100 for positions that do
    not count. With `chunk_size`, the logits of at most that many positions exist at a time; without it, all of them.

    Collective over `group`: one maximum and one sum of two numbers per position, whatever the chunks. Backward
    communicates nothing: the gradient of `hidden`, and of the hidden states of `terms`, is this rank's term of a sum,
    which `enter_model_parallel` computes. An operand that needs no gradient costs no product.

    The logits of chunks are computed again in the backward pass, since the factor of each position's gradient is known
    only then. `linear_cross_entropy_sum` is given the factors in advance, and computes the logits once.
    """
    if chunk_size is not None:
        function: Any = _LinearCrossEntropy.apply
        operands = operands_in_a_row((LogitTerm(hidden, weight), *terms), positions=targets.numel())
        how = LogitChunks(scale, cap, group, offset, chunk_size)
        found = _counted(function(targets.reshape(-1), how, bias, *operands), targets)
        return found if normalisers else TokenLosses(found.losses, None)
    logits = linear_logits(hidden, weight, bias, terms=terms, scale=scale, cap=cap)
    if normalisers:
        return _of_logits(logits, targets, group, offset)
    return TokenLosses(vocab_parallel_cross_entropy(logits, targets, group=group, offset=offset), None)


class LogitChunks(NamedTuple):
    """How logits are computed from products, and for how many positions at a time."""

    scale: float
    cap: float | None
    group: Group
    offset: int
    chunk_size: int

    def logits(self, terms: Sequence[LogitTerm], chunk: slice, bias: Tensor | None) -> Tensor:
        """Return the logits [n, v] of a chunk of the positions."""
        (hidden, weight), *others = (LogitTerm(term.hidden[chunk], term.weight) for term in terms)
        return linear_logits(hidden, weight, bias, terms=others, scale=self.scale, cap=self.cap)

    def chunks(self, positions: int) -> Iterator[slice]:
        """Yield the chunks of `positions` positions."""
        for start in range(0, positions, self.chunk_size):
            yield slice(start, start + self.chunk_size)


def operands_in_a_row(terms: Sequence[LogitTerm], *, positions: int) -> list[Tensor]:
    """Return the operands of products in one list for autograd, hidden states as [positions, features]."""
    return [
        operand for term in terms for operand in (term.hidden.reshape(positions, term.hidden.shape[-1]), term.weight)
    ]


def paired_operands(operands: Sequence[Tensor]) -> list[LogitTerm]:
    """Return the products, the head's own first, whose operands autograd has in one list."""
    return [LogitTerm(*pair) for pair in zip(operands[::2], operands[1::2], strict=True)]


class _LinearCrossEntropy(torch.autograd.Function):
    """A function that keeps per position only the maximum of the logits and the sum of exponentials relative to it."""

    @staticmethod
    def forward(
        ctx: Any, targets_N: Tensor, how: LogitChunks, bias_v: Tensor | None, *operands: Tensor
    ) -> tuple[Tensor, Tensor]:
        terms = paired_operands(operands)
        hidden_NH, weight_vH = terms[0]
        positions, local = hidden_NH.shape[0], weight_vH.shape[0]
        here_N, index_N1 = places(targets_N, how.offset, local)
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        # A maximum of minus infinity, where all logits are or there are none, would make NaN of the exponentials.
        lowest = torch.finfo(wide).min
        own_N = hidden_NH.new_full((positions,), lowest, dtype=wide)
        sums_2N = hidden_NH.new_zeros((2, positions), dtype=wide)
        for chunk in how.chunks(positions) if local else ():
            logits_nv = how.logits(terms, chunk, bias_v)
            own_N[chunk] = logits_nv.max(dim=-1).values.clamp_min(lowest)
            sums_2N[1, chunk] = logits_nv.gather(-1, index_N1[chunk]).squeeze(-1)
            sums_2N[0, chunk] = logits_nv.sub_(own_N[chunk].unsqueeze(-1)).exp_().sum(dim=-1)
        highest_N, total_N, target_logit_N = joined_sums(own_N, sums_2N, here_N, how.group)
        ctx.how = how
        ctx.save_for_backward(targets_N, highest_N, total_N, bias_v, *operands)
        log_total_N = total_N.log()
        return log_total_N - target_logit_N, highest_N + log_total_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, grad_normaliser_N: Tensor) -> tuple[Tensor | None, ...]:
        targets_N, highest_N, total_N, bias_v, *operands = ctx.saved_tensors
        terms = paired_operands(operands)
        positions, local = targets_N.shape[0], terms[0].weight.shape[0]
        how: LogitChunks = ctx.how
        here_N, index_N1 = places(targets_N, how.offset, local)
        factor_N = (grad_N + grad_normaliser_N) / total_N
        _, _, bias_wanted, *wanted = ctx.needs_input_grad
        of_bias_v = torch.zeros_like(bias_v, dtype=total_N.dtype) if bias_wanted else None
        sums = [ProductGradients(*term, wanted[2 * place], wanted[2 * place + 1]) for place, term in enumerate(terms)]
        for chunk in how.chunks(positions) if local else ():
            logits_nv = how.logits(terms, chunk, bias_v)
            grad_nv = logits_nv if how.cap is None else logits_nv.clone()  # the slope of the cap needs them once more
            grad_nv.sub_(highest_N[chunk].unsqueeze(-1)).exp_().mul_(factor_N[chunk].unsqueeze(-1))
            grad_nv.scatter_add_(-1, index_N1[chunk], -(grad_N * here_N)[chunk].unsqueeze(-1))
            if how.cap is not None:
                grad_nv.mul_(logits_nv.div_(how.cap).square_().neg_().add_(1.0))
            del logits_nv
            if how.scale != 1.0:
                grad_nv.mul_(how.scale)
            if of_bias_v is not None:
                of_bias_v += grad_nv.sum(dim=0)
            for gradients in sums:
                gradients.add(chunk, grad_nv)
        of_bias = None if of_bias_v is None else of_bias_v.to(bias_v.dtype)
        return None, None, of_bias, *(gradient for gradients in sums for gradient in gradients.rounded())


class ProductGradients:
    """Sums over chunks, in at least float32, of those gradients of a product that are wanted.

    Each gradient is added in place. For a product in half precision that would take a second whole copy, so it is
    computed a few rows at a time instead.
    """

    def __init__(self, hidden_NH: Tensor, weight_vH: Tensor, hidden_wanted: bool, weight_wanted: bool) -> None:
        self._hidden, self._dtype = hidden_NH, weight_vH.dtype
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        # On a CPU half precision is multiplied in float32, as `linear` does.
        self._operands = wide if hidden_NH.device.type == "cpu" else weight_vH.dtype
        self._weight = weight_vH.to(self._operands) if hidden_wanted else None
        self._of_hidden = torch.empty_like(hidden_NH, dtype=wide) if hidden_wanted else None
        self._of_weight = torch.empty_like(weight_vH, dtype=wide) if weight_wanted else None
        self._begun = False
        """Whether the sums hold anything. The first chunk is written, not added, to save a pass over a large weight."""

    def add(self, chunk: slice, grad_nv: Tensor) -> None:
        """Add the gradients of a chunk, given the gradient of its products."""
        if self._of_hidden is None and self._of_weight is None:
            return
        grad_nv = grad_nv.to(self._operands)
        if self._of_hidden is not None and self._weight is not None:
            if self._operands == self._of_hidden.dtype:
                torch.mm(grad_nv, self._weight, out=self._of_hidden[chunk])
            else:
                self._of_hidden[chunk] = grad_nv @ self._weight
        begun, self._begun = self._begun, True
        if self._of_weight is None:
            return
        hidden_nH = self._hidden[chunk].to(self._operands)
        if self._operands == self._of_weight.dtype:
            self._of_weight.addmm_(grad_nv.T, hidden_nH, beta=1.0 if begun else 0.0)
            return
        for rows_rH, grad_nr in zip(self._of_weight.split(_ROWS), grad_nv.split(_ROWS, dim=1), strict=True):
            if begun:
                rows_rH += grad_nr.T @ hidden_nH
            else:
                rows_rH.copy_(grad_nr.T @ hidden_nH)

    def sums(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of hidden states and weight in the type of the sums: zero without any chunk."""
        if not self._begun:
            for gradient in (self._of_hidden, self._of_weight):
                if gradient is not None:
                    gradient.zero_()
        return self._of_hidden, self._of_weight

    def rounded(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of hidden states and weight, each in the type of its operand."""
        of_hidden, of_weight = self.sums()
        return (
            None if of_hidden is None else of_hidden.to(self._hidden.dtype),
            None if of_weight is None else of_weight.to(self._dtype),
        )
