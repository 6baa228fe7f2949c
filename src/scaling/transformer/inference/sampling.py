"""Choose the next token from logits: greedy, temperature, top-k and top-p. Pure functions on [b, vocabulary]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.core import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The default takes the most likely one."""

    temperature: float = 0.0
    """0: the most likely token; 1: the model's distribution; above: flatter."""
    top_k: int | None = None
    """Draw from the k most likely tokens only. None: off."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities add up to p (arXiv:1904.09751). None: off."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"temperature ({self.temperature}) must be at least 0; 0 takes the most likely token")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k ({self.top_k}) must be at least 1; leave it out to draw from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p ({self.top_p}) must be above 0 and at most 1; leave it out to draw from all tokens"
            )


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return logits [b, v] with all but the k largest of each row at -inf."""
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return logits [b, v] with all but the most likely tokens of each row at -inf, so many that they reach p."""
    ordered, index = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    dropped = before >= p
    dropped[:, 0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, index, dropped), -torch.inf)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Return one token id per row of logits [b, v], int64 [b]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    # Seen from the largest, and with a temperature that float32 can divide by, no quotient is too large.
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / max(sampling.temperature, 1e-30)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)
