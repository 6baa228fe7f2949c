"""What tokens may be drawn from: temperature, top-k, top-p, min-p, repetition penalty. Pure functions on [r, V]."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

import torch
from torch import Tensor

from scaling.core import ConfigError

_LEAST: Final = 1e-30
"""What scores are divided by is at least this, and at most one over this."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The default takes the most likely one."""

    temperature: float = 0.0
    """0: the most likely token; 1: the model's distribution; above: flatter."""
    top_k: int | None = None
    """Draw from the k most likely tokens only. None: off."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities add up to p (arXiv:1904.09751). None: off."""
    min_p: float | None = None
    """Draw from the tokens at least this many times as likely as the most likely one (arXiv:2407.01082). None: off."""
    repetition_penalty: float = 1.0
    """Divide the logits of tokens of the text so far by it, multiply those below 0 (arXiv:1909.05858). 1: off."""

    def __post_init__(self) -> None:
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


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return scores [r, V] that are lower, for a penalty above 1, where bool [r, V] says a token has been seen."""
    # Within what float32 can divide by, and no further than the largest number: only what is impossible is at -inf.
    penalty = min(max(penalty, _LEAST), 1 / _LEAST)
    most = torch.finfo(scores.dtype).max
    less = torch.where(scores < 0, scores * penalty, scores / penalty).clamp(-most, most)
    return torch.where(seen & (scores > -torch.inf), less, scores)


def at_temperature(scores: Tensor, temperature: float) -> Tensor:
    """Return scores [r, V] divided by a temperature above 0, seen from the largest of each row: none is above 0."""
    # With a temperature that float32 can divide by, no quotient is too large and none is undefined.
    return (scores - scores.amax(dim=-1, keepdim=True)) / min(max(temperature, _LEAST), 1 / _LEAST)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Return scores [r, V] with all below the k-th largest of each row at -inf; what equals it stays."""
    threshold = scores.topk(min(k, scores.shape[-1]), dim=-1).values[:, -1:]
    return scores.masked_fill(scores < threshold, -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Return scores [r, V] with all but the most likely tokens of each row at -inf, so many that they reach p.

    Of those that are equally likely the lower ids come first.
    """
    if p == 1:
        return scores  # the sum of all may reach 1 too early, in the digits there are
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    dropped = probabilities.cumsum(dim=-1) - probabilities >= p
    dropped[:, 0] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -torch.inf)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Return scores [r, V] with those at -inf whose probability is below p times the largest of the row."""
    return scores.masked_fill(
        scores.softmax(dim=-1) < p * scores.softmax(dim=-1).amax(dim=-1, keepdim=True), -torch.inf
    )


def filtered(scores: Tensor, sampling: Sampling) -> Tensor:
    """Return scores [r, V] at a temperature above 0, those of tokens that may not be drawn at -inf."""
    scores = at_temperature(scores, sampling.temperature)
    if sampling.top_k is not None:
        scores = keep_top_k(scores, sampling.top_k)
    if sampling.top_p is not None:
        scores = keep_top_p(scores, sampling.top_p)
    if sampling.min_p is not None:
        scores = keep_min_p(scores, sampling.min_p)
    return scores


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Return one token id per row of logits [b, v], int64 [b]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial(filtered(logits.float(), sampling).softmax(dim=-1), 1, generator=generator).squeeze(-1)
