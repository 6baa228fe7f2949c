"""Choose one token for each of several rows of logits, each with its own options, by seed and position alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from scaling.core import derive_seed
from scaling.transformer.inference.generation.contenders import most_likely
from scaling.transformer.inference.generation.sampling import Sampling, drawable, penalized

NOT_FINITE: Final = -1
"""Returned in place of a token where logits are not finite."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The options for the choice of one row's token."""

    sampling: Sampling
    seed: int
    position: int
    """Position of the new token in its text, the prompt included."""
    seen: Sequence[int] | Tensor | None = None
    """Tokens of the text so far, for the repetition penalty. None: no penalty."""
    forbidden: frozenset[int] = frozenset()
    """Tokens that must not be chosen if any other can be."""
    best: int | None = None
    """How many of the most likely tokens to report. None: no log-probabilities at all."""

    @property
    def is_plain(self) -> bool:
        """Return whether the row takes the most likely token of its unchanged logits."""
        return self.sampling.temperature == 0 and not self.is_changed

    @property
    def is_changed(self) -> bool:
        """Return whether single tokens become more or less likely."""
        return bool(self.forbidden) or self.is_penalized

    @property
    def is_penalized(self) -> bool:
        """Return whether tokens of the text so far become less likely."""
        return self.seen is not None and len(self.seen) > 0 and self.sampling.repetition_penalty != 1


@dataclass(frozen=True)
class Chosen:
    """The result for one row. Log-probabilities are the model's own, whatever distribution was drawn from."""

    token: int
    """`NOT_FINITE` where the row's logits are not finite: any is nan or plus infinity, or all are minus infinity."""
    log_probability: float | None = None
    best: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and their log-probabilities; equally likely tokens are in the order of their ids."""


def choose_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[Chosen]:
    """Choose a token for each row of logits [r, V], with one transfer to the host.

    At temperature 0, it is the most likely token; of equally likely ones, the one with the lowest id. Above, it is the
    token at which the cumulative distribution, in the order of ids, exceeds a number that follows from the seed and the
    position of the draw. So a row's token depends neither on its neighbours nor on the rank that chooses.
    """
    if not draws:
        return []
    logits = logits.detach()
    tokens, highest = _largest(logits)
    for sampling, rows in _groups([None if draw.is_plain else draw.sampling for draw in draws]):
        every = len(rows) == len(draws)
        found = _tokens(logits if every else logits[rows], sampling, [draws[row] for row in rows])
        if every:
            tokens = found
        else:
            tokens[rows] = found
    wanted = [row for row, draw in enumerate(draws) if draw.best is not None]
    columns = torch.stack([tokens.double(), highest.double()], dim=-1)
    if not wanted:
        return [Chosen(_token(*numbers)) for numbers in _on_host(columns)]
    most = min(max(draw.best or 0 for draw in draws), logits.shape[-1])
    reported = columns.new_zeros(len(draws), 1 + 2 * most)
    unsound = (highest - highest != 0)[wanted].unsqueeze(-1)
    reported[wanted] = _report(logits[wanted].masked_fill(unsound, 0), tokens[wanted], most)
    return [
        _chosen(_token(*numbers[:2]), numbers[2:], most, draw)
        for numbers, draw in zip(_on_host(torch.cat([columns, reported], dim=-1)), draws, strict=True)
    ]


def uniform(draw: Draw) -> float:
    """Return the number in [0, 1) that decides a draw: a function of its seed and position alone."""
    return (derive_seed(draw.seed, "token", draw.position) >> 10) / 2**53  # 53 bits, as many as a float64 has: below 1


def _on_host(columns: Tensor) -> list[list[float]]:
    """Copy to the host, waiting for the device: nothing can continue before the tokens are known."""
    numbers: list[list[float]] = columns.tolist()
    return numbers


def _token(token: float, highest: float) -> int:
    """Return the token, or `NOT_FINITE` if the largest logit is not finite: a nan would be the largest."""
    return int(token) if highest - highest == 0 else NOT_FINITE


def _chosen(token: int, numbers: Sequence[float], most: int, draw: Draw) -> Chosen:
    if draw.best is None or token == NOT_FINITE:
        return Chosen(token)
    ids, values = numbers[1 : 1 + most], numbers[1 + most :]
    best = zip(map(int, ids), values, strict=True)
    return Chosen(token, numbers[0], tuple(best)[: draw.best])


def _groups(keys: Sequence[Sampling | None]) -> list[tuple[Sampling, list[int]]]:
    """Return the rows grouped by equal options; rows with None are left out."""
    found: dict[Sampling, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, []).append(row)
    return list(found.items())


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first largest number of each row, and the number: nan is above all others."""
    if scores.device.type != "cpu":
        highest, first = scores.max(dim=-1)
        return first, highest
    # 39 us for 8 x 49152 float32 numbers, where torch's maximum with its index takes 372 us.
    scores = scores if scores.dtype == torch.float64 else scores.float()
    first = torch.from_numpy(np.argmax(scores.numpy(), axis=-1))
    return first, scores.gather(-1, first.unsqueeze(-1)).squeeze(-1)


def _tokens(logits: Tensor, sampling: Sampling, draws: Sequence[Draw]) -> Tensor:
    """Return the tokens int64 [r] of rows with equal options."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if any(draw.is_penalized for draw in draws):
        row, token = _places([draw.seen if draw.is_penalized else None for draw in draws], scores)
        scores = scores.index_put((row, token), penalized(scores[row, token], sampling.repetition_penalty))
    if any(draw.forbidden for draw in draws):
        row, token = _places([sorted(draw.forbidden) for draw in draws], scores)
        allowed = scores.index_put((row, token), scores.new_tensor(-torch.inf))
        scores = torch.where(allowed.amax(dim=-1, keepdim=True) == -torch.inf, scores, allowed)
    if sampling.temperature == 0:
        return _largest(scores)[0]
    kept, ids = drawable(scores, sampling)
    cumulative = kept.exp_().cumsum(dim=-1)
    total = cumulative[:, -1:]
    numbers = torch.tensor([[uniform(draw)] for draw in draws], dtype=torch.float64, device=logits.device)
    # Below the total, so that the sum exceeds it at some token; that token's probability is above 0, however small.
    target = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True)
    return ids.gather(-1, place.clamp_(max=ids.shape[-1] - 1)).squeeze(-1)  # a row that is not finite has no place


def _places(ids: Sequence[Sequence[int] | Tensor | None], scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and id of the tokens of each row, with repetitions, without those beyond the vocabulary."""
    device = scores.device
    given = [torch.as_tensor(() if own is None else own, dtype=torch.int64, device=device) for own in ids]
    token = torch.cat(given)
    lengths = torch.tensor([len(own) for own in given], device=device)
    row = torch.arange(len(given), device=device).repeat_interleave(lengths)
    within = (token >= 0) & (token < scores.shape[-1])
    return row[within], token[within]


def _report(logits: Tensor, tokens: Tensor, most: int) -> Tensor:
    """Return per row, in float64: the token's log-probability, the most likely ids, and their log-probabilities."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    normal = logits.logsumexp(dim=-1, keepdim=True).double()
    own = logits.gather(-1, tokens.unsqueeze(-1)).double() - normal
    ids = most_likely(logits, most)
    return torch.cat([own, ids.double(), logits.gather(-1, ids).double() - normal], dim=-1)
