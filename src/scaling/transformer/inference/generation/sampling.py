"""Distribution of the next token: temperature, top-k, top-p, min-p, repetition penalty. Pure functions on [r, V]."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from numbers import Integral, Real
from typing import Final

import torch
from torch import Tensor

from scaling.core import ConfigError
from scaling.transformer.inference.generation.contenders import bound_of_top, contenders

_LEAST: Final = 1e-30
"""The divisor of scores is at least this, and at most one over this."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. By default, it is the most likely one."""

    temperature: float = 0.0
    """0: the most likely token; 1: the model's distribution; above: flatter."""
    top_k: int | None = None
    """Draw from the k most likely tokens only. None: off."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities add up to p (arXiv:1904.09751). None: off."""
    min_p: float | None = None
    """Draw from the tokens at least this many times as likely as the most likely one (arXiv:2407.01082). None: off."""
    repetition_penalty: float = 1.0
    """Divide logits of tokens in the text so far by this; multiply those below 0 by it (arXiv:1909.05858). 1: off."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            kind, what = (Integral, "whole number") if name == "top_k" else (Real, "number")
            if isinstance(value, bool) or not isinstance(value, kind | None):
                raise ConfigError(f"{name} ({value!r}) must be a {what}")
        if not 0 <= self.temperature < inf:
            raise ConfigError(
                f"temperature ({self.temperature}) must be a number of at least 0; 0 takes the most likely token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k ({self.top_k}) must be at least 1; leave it out to draw from all tokens")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise ConfigError(
                    f"{name} ({share}) must be above 0 and at most 1; leave it out to draw from all tokens"
                )
        if not 0 < self.repetition_penalty < inf:
            raise ConfigError(
                f"repetition_penalty ({self.repetition_penalty}) must be a number above 0; 1 leaves the text so far "
                "out of account"
            )


def penalized(scores: Tensor, penalty: float) -> Tensor:
    """Return the scores of tokens that have been seen, lowered by a penalty above 1."""
    # The penalty is clamped to numbers that float32 can divide by, and scores to finite ones: only impossible tokens
    # are at -inf.
    penalty = min(max(penalty, _LEAST), 1 / _LEAST)
    most = torch.finfo(scores.dtype).max
    changed = torch.where(scores < 0, scores * penalty, scores / penalty).clamp(-most, most)
    return changed.masked_fill(scores == -torch.inf, -torch.inf)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Return scores [r, C] with all below the k-th largest of each row at -inf; scores equal to it stay."""
    threshold = scores.topk(min(k, scores.shape[-1]), dim=-1).values[:, -1:]
    return scores.masked_fill(scores < threshold, -torch.inf)


def keep_top_p(scores: Tensor, p: float, whole: Tensor | None = None) -> Tensor:
    """Return scores [r, C] with all but the most likely tokens of each row at -inf: the fewest that reach p.

    Of equally likely tokens, those with lower ids come first. `whole` [r, 1]: the sum of the exponentials of all
    scores, relative to the largest, where there are more tokens than these.
    """
    if p == 1:
        return scores  # by rounding, the sum may reach 1 before the last token
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    weights = (ordered - ordered[:, :1]).exp()
    reached = weights.cumsum(dim=-1)
    dropped = reached - weights >= p * (reached[:, -1:] if whole is None else whole)
    dropped[:, 0] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -torch.inf)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Return scores [r, C] with tokens at -inf whose probability is below p times the largest of the row."""
    return scores.masked_fill(scores - scores.amax(dim=-1, keepdim=True) < log(p), -torch.inf)


def drawable(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the scores float64 [r, C] of tokens that may be drawn at a temperature above 0, and their ids [r, C].

    The largest of each row is 0, and tokens that may not be drawn are at -inf. Ids ascend.
    """
    # With a temperature that float32 can divide by, no quotient is too large or undefined.
    temperature = min(max(sampling.temperature, _LEAST), 1 / _LEAST)
    relative = scores - scores.amax(dim=-1, keepdim=True)
    bounds: list[Tensor | None] = []
    whole = None
    if sampling.min_p is not None and (sampling.top_k is None or sampling.top_p is None):
        # Otherwise, top-p is a share of all that top-k keeps, and min-p must not have removed any of these before.
        bounds.append(_at_least(torch.full_like(relative[:, :1], log(sampling.min_p)), temperature))
    if sampling.top_k is not None:
        bounds.append(bound_of_top(relative, sampling.top_k))
    elif sampling.top_p is not None and sampling.top_p < 1:
        # All tokens less likely than this bound have together no more than the share that top-p leaves out.
        whole = (relative / temperature).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
        least = log((1 - sampling.top_p) / relative.shape[-1])
        bounds.append(_at_least(whole.log().to(relative.dtype) + least, temperature))
    known = [bound for bound in bounds if bound is not None]
    found, ids = contenders(relative, torch.cat(known, dim=-1).amax(dim=-1, keepdim=True) if known else None)
    found = found.double() / temperature
    if sampling.top_k is not None:
        found = keep_top_k(found, sampling.top_k)
    if sampling.top_p is not None:
        found = keep_top_p(found, sampling.top_p, whole)
    if sampling.min_p is not None:
        found = keep_min_p(found, sampling.min_p)
    return found, ids


def _at_least(logarithms: Tensor, temperature: float) -> Tensor:
    """Return the lowest score, before division by the temperature, of tokens this likely, with a rounding margin."""
    return (logarithms - 1e-3) * (temperature * (1 + 1e-3))
