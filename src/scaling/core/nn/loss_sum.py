"""The weighted sum of cross entropies, whose gradients are computed with it, while the logits of a chunk exist.

Shape suffixes: N positions, n those of a chunk, v the local part of the vocabulary, H features, P ranks of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch._C import _autograd
from torch.autograd.function import once_differentiable

from scaling.core.collectives import ops
from scaling.core.collectives.ops import Group
from scaling.core.nn.loss import (
    IGNORED,
    LogitChunks,
    LogitTerm,
    ProductGradients,
    linear_cross_entropy,
    operands_in_a_row,
    paired_operands,
    places,
)

_CPU_BYTES, _CPU_TOKENS = 2**24, 128
"""Bytes of the logits of a chunk on a CPU, which stay in its cache, and the least number of tokens: with fewer, reading
and writing the gradient of the weight for each chunk takes longer than the products."""
_GPU_BYTES, _GPU_TOKENS = 2**29, 1024
"""The same on a GPU, where each kernel has to be worth its launch."""
_LIFT = 2.0**10
"""Multiplies gradients of logits that are rounded to float16 before the loss scale is known: probabilities down to
6e-11 survive, and weights up to 60 do not overflow."""


class LossSum(NamedTuple):
    """The results of a cross entropy for all positions together, 0-d, in at least float32."""

    loss: Tensor
    """Sum of weight * (-log softmax(logits)[target] + z_loss * (log Z)^2); can be differentiated."""
    z_loss: Tensor
    """The second part of the loss alone, without a gradient."""


def tokens_per_chunk(tokens: int, vocabulary: int, device: torch.device) -> int:
    """Return the number of tokens at a time with which cross entropy over `vocabulary` logits each is fast.

    It cuts `tokens` into chunks of about equal size: on a CPU of at most 16 MiB of float32 logits, or 128 tokens if
    that is more; on a GPU 512 MiB, or 1024 tokens.
    """
    size, least = (_CPU_BYTES, _CPU_TOKENS) if device.type == "cpu" else (_GPU_BYTES, _GPU_TOKENS)
    most = max(least, size // (4 * max(1, vocabulary)))
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))


def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    z_loss: float = 0.0,
    bias: Tensor | None = None,
    terms: Sequence[LogitTerm] = (),
    scale: float = 1.0,
    cap: float | None = None,
    group: Group = None,
    offset: int = 0,
    chunk_size: int,
) -> LossSum:
    """Return the sum of `linear_cross_entropy` times `weights`, and of z_loss * (log Z)^2, in three products.

    The arguments are those of `linear_cross_entropy`. `weights` [...] are a number for each position, in advance: no
    gradient reaches them, and ignored positions have weight 0. The backward pass only has to multiply by the gradient
    of one number, whatever it is. `chunk_size` must be the same on all ranks of `group`.

    Where gradients are wanted, they are computed while the logits of a chunk exist, and kept in at least float32 until
    the backward pass: one as large as `hidden` and one as large as `weight`, for each micro-batch whose backward pass
    is still to come. On the last stage of a pipeline that is one micro-batch under 1F1B, and all of a step where all
    forward passes come first. Nothing else is kept. Where no gradient is wanted, none is computed.

    Collective over `group`: where gradients are wanted, an all-gather of three numbers per position for each chunk,
    under way while the next chunk is multiplied, so that the logits of two chunks exist; otherwise the communication of
    `linear_cross_entropy`. Backward communicates nothing: gradients of hidden states are this rank's term of a sum.
    """
    flat = weights.detach().reshape(-1).masked_fill(targets.reshape(-1) == IGNORED, 0.0)
    operands = [hidden, weight, *(operand for term in terms for operand in term), *([] if bias is None else [bias])]
    if not torch.is_grad_enabled() or not any(operand.requires_grad for operand in operands):
        found = linear_cross_entropy(
            hidden,
            weight,
            targets,
            bias=bias,
            terms=terms,
            scale=scale,
            cap=cap,
            group=group,
            offset=offset,
            chunk_size=chunk_size,
            normalisers=z_loss > 0,
        )
        flat = flat.to(found.losses.dtype)
        return _summed(found.losses.reshape(-1), found.log_normalisers, flat, z_loss)
    products = operands_in_a_row((LogitTerm(hidden, weight), *terms), positions=targets.numel())
    how = LogitChunks(scale, cap, group, offset, chunk_size)
    function: Any = _LinearCrossEntropySum.apply
    return LossSum(*function(targets.reshape(-1), flat, how, z_loss, bias, *products))


def _summed(losses_N: Tensor, log_normalisers: Tensor | None, weights_N: Tensor, z_loss: float) -> LossSum:
    loss = (losses_N * weights_N).sum()
    if log_normalisers is None:
        return LossSum(loss, torch.zeros_like(loss))
    penalty = z_loss * (log_normalisers.reshape(-1).square() * weights_N).sum()
    return LossSum(loss + penalty, penalty)


class _LinearCrossEntropySum(torch.autograd.Function):
    """A function that keeps the gradients of its operands, for an incoming gradient of one."""

    @staticmethod
    def forward(
        ctx: Any,
        targets_N: Tensor,
        weights_N: Tensor,
        how: LogitChunks,
        z_loss: float,
        bias_v: Tensor | None,
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(operands[0].dtype, torch.float32)
        work = _Work(_Wanted(targets_N, weights_N.to(wide), z_loss), how, bias_v, paired_operands(operands))
        work.want(*ctx.needs_input_grad[4:])
        ahead = 0 if how.group is None else 1
        started: list[_Chunk] = []
        for place in how.chunks(targets_N.shape[0]):
            started.append(work.start(place))
            if len(started) > ahead:
                work.finish(started.pop(0))
        for chunk in started:
            work.finish(chunk)
        ctx.lift, ctx.types = work.lift, [None if each is None else each.dtype for each in (bias_v, *operands)]
        ctx.save_for_backward(*work.gradients())
        loss, penalty = _summed(work.losses_N, work.log_normalisers_N, work.weights_N, z_loss)
        ctx.mark_non_differentiable(penalty)
        return loss, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # If the graph is kept for another pass (in the first half of a split one), so are the gradients.
        kept = _autograd._get_current_graph_task_keep_graph()
        factor = grad / ctx.lift
        scaled = (
            None if each is None else (each * factor if kept else each.mul_(factor)).to(dtype)
            for each, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return None, None, None, None, *scaled


class _Chunk(NamedTuple):
    place: slice
    logits_nv: Tensor | None
    """Kept for the slope of a cap only."""
    exp_nv: Tensor | None
    """Exponentials relative to this rank's own maximum; None where its range of the vocabulary is empty."""
    own_n: Tensor
    numbers_P3n: Tensor
    """By rank, its maximum, its sum of exponentials relative to that, and its logit of the target or minus infinity."""
    arriving: ops.Pending | None


class _Wanted(NamedTuple):
    """The sum to compute, with the targets and weights of all positions."""

    targets_N: Tensor
    weights_N: Tensor
    z_loss: float


@final
class _Work:
    """Computes the losses of all positions, and the gradients of their operands, chunk by chunk."""

    def __init__(
        self,
        wanted: _Wanted,
        how: LogitChunks,
        bias_v: Tensor | None,
        terms: Sequence[LogitTerm],
    ) -> None:
        targets_N, weights_N, z_loss = wanted
        self.weights_N = weights_N
        self.losses_N, self.log_normalisers_N = torch.empty_like(weights_N), torch.empty_like(weights_N)
        self._how, self._z_loss, self._bias_v, self._terms = how, z_loss, bias_v, terms
        self._local = terms[0].weight.shape[0]
        self._ignored_N = targets_N == IGNORED
        self._here_N, self._index_N1 = places(targets_N, how.offset, self._local)
        half = any(term.weight.dtype == torch.float16 for term in terms) and weights_N.device.type != "cpu"
        self.lift = _LIFT if half else 1.0
        self._of_bias: Tensor | None = None
        self._sums: list[ProductGradients] = []

    def want(self, bias: bool, *operands: bool) -> None:
        """Set for which operands gradients are wanted."""
        if bias and self._bias_v is not None:
            self._of_bias = torch.zeros_like(self._bias_v, dtype=self.weights_N.dtype)
        pairs = zip(self._terms, operands[::2], operands[1::2], strict=True)
        self._sums = [ProductGradients(*term, hidden, weight) for term, hidden, weight in pairs]

    def start(self, place: slice) -> _Chunk:
        """Compute the logits of a chunk, and start sending the other ranks the numbers that they need of them."""
        here_n, group = self._here_N[place], self._how.group
        # A maximum of minus infinity, where all logits are or there are none, would make NaN of the exponentials.
        lowest = torch.finfo(self.weights_N.dtype).min
        numbers_3n = self.weights_N.new_full((3, here_n.shape[0]), -torch.inf)
        own_n, sum_n, target_n = numbers_3n
        logits_nv = exp_nv = None
        if self._local:
            exp_nv = self._how.logits(self._terms, place, self._bias_v)
            torch.amax(exp_nv, dim=-1, out=own_n).clamp_min_(lowest)
            target_n.copy_(exp_nv.gather(-1, self._index_N1[place]).squeeze(-1)).masked_fill_(~here_n, -torch.inf)
            if self._how.cap is not None:
                logits_nv, exp_nv = exp_nv, exp_nv.clone()
            torch.sum(exp_nv.sub_(own_n.unsqueeze(-1)).exp_(), dim=-1, out=sum_n)
        else:
            own_n.fill_(lowest)
            sum_n.zero_()
        if group is None:
            return _Chunk(place, logits_nv, exp_nv, own_n, numbers_3n.unsqueeze(0), None)
        numbers_P3n = numbers_3n.new_empty((group.size(), *numbers_3n.shape))
        arriving = ops.all_gather_start(numbers_P3n.view(-1), numbers_3n.view(-1), group)
        return _Chunk(place, logits_nv, exp_nv, own_n, numbers_P3n, arriving)

    def finish(self, chunk: _Chunk) -> None:
        """Add the losses and gradients of a chunk. Its exponentials are overwritten with the gradient of its logits."""
        if chunk.arriving is not None:
            chunk.arriving.wait()
        own_Pn, sum_Pn, target_Pn = chunk.numbers_P3n.unbind(1)
        highest_n = own_Pn.amax(dim=0)
        total_n = (sum_Pn * (own_Pn - highest_n).exp_()).sum(dim=0)
        log_total_n = total_n.log()
        ignored_n = self._ignored_N[chunk.place]
        self.losses_N[chunk.place] = (log_total_n - (target_Pn.amax(dim=0) - highest_n)).masked_fill_(ignored_n, 0.0)
        log_z_n = self.log_normalisers_N[chunk.place]
        torch.add(highest_n, log_total_n, out=log_z_n).masked_fill_(ignored_n, 0.0)
        if chunk.exp_nv is None:
            return
        weights_n = self.weights_N[chunk.place] * (self._how.scale * self.lift)
        share_n = weights_n * (1.0 + 2.0 * self._z_loss * log_z_n) * (chunk.own_n - highest_n).exp_() / total_n
        grad_nv = chunk.exp_nv.mul_(share_n.unsqueeze(-1))
        of_target_n = weights_n * self._here_N[chunk.place]
        grad_nv.scatter_add_(-1, self._index_N1[chunk.place], of_target_n.neg_().unsqueeze(-1))
        if chunk.logits_nv is not None and self._how.cap is not None:
            grad_nv.mul_(chunk.logits_nv.div_(self._how.cap).square_().neg_().add_(1.0))
        if self._of_bias is not None:
            self._of_bias += grad_nv.sum(dim=0)
        for gradients in self._sums:
            gradients.add(chunk.place, grad_nv)

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients of bias and operands, times `lift`."""
        return [self._of_bias, *(gradient for gradients in self._sums for gradient in gradients.sums())]
