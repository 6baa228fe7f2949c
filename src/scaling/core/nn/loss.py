"""Cross entropy over a vocabulary cut over the model axis, without ever gathering the logits.

Shape suffixes: N positions, v the local part of the vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.collectives.ops import Group

_IGNORED = -100  # what torch.nn.functional.cross_entropy ignores


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_Nv: Tensor, targets_N: Tensor, offset: int, group: Group) -> Tensor:
        positions, local = logits_Nv.shape
        if local:
            highest_N = logits_Nv.max(dim=-1).values
        else:  # this rank's range of the vocabulary is all padding
            highest_N = logits_Nv.new_full((positions,), -torch.inf)
        ops.all_reduce(highest_N, group, maximum=True)
        exp_Nv = (logits_Nv - highest_N.unsqueeze(-1)).exp_()
        local_targets_N = targets_N - offset
        here_N = (local_targets_N >= 0) & (local_targets_N < local)
        index_N1 = torch.where(here_N, local_targets_N, 0).unsqueeze(-1)
        # One message: the local sums of exponentials, and the target's logit from the one rank that holds it.
        sums = torch.stack([exp_Nv.sum(dim=-1), torch.zeros_like(highest_N)])
        if local:
            own = logits_Nv.gather(-1, index_N1).squeeze(-1) - highest_N
            sums[1] = torch.where(here_N, own, 0.0)
        ops.all_reduce(sums, group)
        total_N, target_logit_N = sums
        softmax_Nv = exp_Nv.div_(total_N.unsqueeze(-1))
        ctx.save_for_backward(softmax_Nv, here_N, index_N1)
        losses_N: Tensor = total_N.log() - target_logit_N
        return losses_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None, None]:
        softmax_Nv, here_N, index_N1 = ctx.saved_tensors
        grad_Nv = softmax_Nv * grad_N.unsqueeze(-1)
        if grad_Nv.shape[-1]:
            grad_Nv.scatter_add_(-1, index_N1, -(grad_N * here_N).unsqueeze(-1))
        return grad_Nv, None, None, None


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, *, group: Group = None, offset: int = 0) -> Tensor:
    """Return -log softmax(logits)[target] per position, in at least float32; 0 where the target is -100, as torch does.

    `logits` [..., local vocabulary] hold this rank's range starting at `offset`; `targets` int64 [...] are global ids.
    Collective over `group`: one maximum and one sum of two numbers per position; the logits stay where they are
    (Megatron-LM, arXiv:1909.08053, section 3). Backward communicates nothing.
    """
    flat = logits.reshape(targets.numel(), logits.shape[-1])
    flat = flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat
    if group is None:
        losses = F.cross_entropy(flat, targets.reshape(-1), reduction="none")
    else:
        function: Any = _VocabParallelCrossEntropy.apply
        losses = cast(Tensor, function(flat, targets.reshape(-1), offset, group))
        losses = losses.masked_fill(targets.reshape(-1) == _IGNORED, 0.0)
    return losses.view(targets.shape)
