"""Probabilities of given tokens and the most likely ones, over a vocabulary cut over the model axis; no gradients.

Shape suffixes: N positions, n those of a chunk, v the local part of the vocabulary, H features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.collectives.ops import Group
from scaling.core.nn.loss import LogitTerm, joined_sums, linear_logits, places

_NOWHERE = torch.iinfo(torch.int64).max
"""Stands for the token of a rank that does not have the largest logit."""


class TokenScores(NamedTuple):
    """The scores of each position."""

    log_probabilities: Tensor
    """log softmax(logits)[target] [N], in at least float32."""
    most_likely: Tensor
    """int64 [N]: the token with the largest logit in the type of the hidden states; among equals, the lowest token."""


@torch.no_grad()
def linear_token_scores(
    hidden_NH: Tensor,
    weight_vH: Tensor,
    targets_N: Tensor,
    *,
    bias: Tensor | None = None,
    terms: Sequence[LogitTerm] = (),
    scale: float = 1.0,
    cap: float | None = None,
    group: Group = None,
    offset: int = 0,
    chunk_size: int,
) -> TokenScores:
    """Return the scores of `linear_logits`, computed for no more than `chunk_size` positions at a time.

    The arguments are those of `linear_cross_entropy`, with all positions in one dimension; no target is ignored.
    Collective over `group`: two maxima and a sum of two numbers per position, whatever the chunks.
    """
    positions, local = hidden_NH.shape[0], weight_vH.shape[0]
    wide = torch.promote_types(hidden_NH.dtype, torch.float32)
    lowest = torch.finfo(wide).min  # a maximum of minus infinity would make NaN of the exponentials
    own_N = hidden_NH.new_full((positions,), lowest, dtype=wide)
    index_N = torch.zeros(positions, dtype=torch.int64, device=hidden_NH.device)
    sums_2N = hidden_NH.new_zeros((2, positions), dtype=wide)
    here_N, target_N1 = places(targets_N, offset, local)
    for start in range(0, positions, chunk_size) if local else ():
        chunk = slice(start, start + chunk_size)
        own_terms = [LogitTerm(term.hidden[chunk], term.weight) for term in terms]
        logits_nv = linear_logits(hidden_NH[chunk], weight_vH, bias, terms=own_terms, scale=scale, cap=cap)
        highest_n, index_N[chunk] = logits_nv.to(hidden_NH.dtype).max(dim=-1)  # in the type that choosing tokens uses
        own_N[chunk] = highest_n.to(wide).clamp_min(lowest)
        sums_2N[1, chunk] = logits_nv.gather(-1, target_N1[chunk]).squeeze(-1)
        sums_2N[0, chunk] = logits_nv.sub_(own_N[chunk].unsqueeze(-1)).exp_().sum(dim=-1)
    highest_N, total_N, target_logit_N = joined_sums(own_N, sums_2N, here_N, group)
    has_N = (own_N == highest_N) if local else torch.zeros_like(here_N)
    lowest_N = ops.all_reduce(-torch.where(has_N, index_N + offset, _NOWHERE), group, maximum=True)
    return TokenScores(target_logit_N - total_N.log(), -lowest_N)
