"""Tokens are chosen row by row: drawn by the exact distribution, keyed by seed and position, whatever stands beside."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import inf, log, nan
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.transformer.inference.generation import choosing
from scaling.transformer.inference.generation.choosing import NOT_FINITE, Chosen, Draw, choose_tokens, uniform
from scaling.transformer.inference.generation.sampling import Sampling

GREEDY = Sampling()
VOCABULARY = 11
LOGITS = [1.5, -0.4, 0.0, 2.1, -1.9, 0.7, 1.1, -1.2, 2.0, 0.3, -0.9]
SEEN = (3, 4, 3, 8, 10)
DRAWS = 20_000


def exact(sampling: Sampling) -> NDArray[np.float64]:
    """Return the filtered distribution of LOGITS, one token at a time."""
    scores = list(LOGITS)
    for token in set(SEEN):
        scores[token] *= sampling.repetition_penalty if scores[token] < 0 else 1 / sampling.repetition_penalty
    weights = {token: np.exp(score / sampling.temperature) for token, score in enumerate(scores)}
    order = sorted(weights, key=lambda token: -weights[token])
    kept = order[: sampling.top_k]
    if sampling.top_p is not None:
        whole, reached, enough = sum(weights[token] for token in kept), 0.0, []
        for token in kept:
            if reached < sampling.top_p * whole:
                enough.append(token)
            reached += weights[token]
        kept = enough
    kept = [token for token in kept if weights[token] >= (sampling.min_p or 0) * weights[order[0]]]
    found = np.zeros(VOCABULARY)
    found[kept] = [weights[token] for token in kept]
    return np.asarray(found / found.sum())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 2.5},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"repetition_penalty": 1.5},
        {"temperature": 1.6, "top_k": 9, "top_p": 0.95, "min_p": 0.12, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(options: dict[str, Any]) -> None:
    """Chi-squared; one text of each seed."""
    sampling = Sampling(**{"temperature": 1.0, **options})
    seen = torch.tensor(SEEN)
    draws = [Draw(sampling=sampling, seed=5, position=position, seen=seen) for position in range(DRAWS)]
    tokens = [chosen.token for chosen in choose_tokens(torch.tensor([LOGITS]).expand(DRAWS, -1), draws)]
    counts, expected = np.bincount(tokens, minlength=VOCABULARY), exact(sampling) * DRAWS
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert expected[possible].min() > 5  # else the test is none
    statistic = (((counts - expected) ** 2)[possible] / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    p = torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2))
    assert float(p) > 0.001


def draw_numbers(rank: int, world_size: int) -> None:
    draws = [Draw(sampling=GREEDY, seed=seed, position=position) for seed in (0, 1) for position in range(500)]
    numbers = np.sort([uniform(draw) for draw in draws])
    assert len(set(numbers)) == len(draws)
    assert np.abs(numbers - np.linspace(0, 1, len(draws))).max() < 0.06  # Kolmogorov and Smirnov, p 0.001


def test_numbers_are_uniform_and_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_numbers(0, 1)
    monkeypatch.setattr(choosing, "derive_seed", lambda *names: 2**63 - 1)
    assert uniform(Draw(sampling=GREEDY, seed=0, position=0)) == 1 - 2**-53


MIXED = [
    GREEDY,
    Sampling(temperature=0.9),
    Sampling(temperature=1.3, top_k=20),
    Sampling(temperature=0.9),
    Sampling(repetition_penalty=1.8),
    Sampling(temperature=1.1, top_p=0.7, repetition_penalty=1.2),
    Sampling(temperature=1.1, min_p=0.1),
    Sampling(temperature=1.0, top_p=0.9),
    GREEDY,
    Sampling(temperature=1.0, top_p=0.9),
]


def mixed(vocabulary: int, seed: int) -> tuple[Tensor, list[Draw]]:
    """Return rows of very different distributions and options."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.rand(len(MIXED), 1, generator=generator) * 6
    logits = torch.randn(len(MIXED), vocabulary, generator=generator) * widths
    seen = torch.randint(0, vocabulary, (len(MIXED), 5), generator=generator).tolist()
    likely = logits.argmax(dim=-1).tolist()
    return logits, [
        Draw(
            sampling=sampling,
            seed=seed,
            position=row,
            seen=None if row == 3 else seen[row],
            forbidden=frozenset({likely[row], 0}) if row in (2, 8) else frozenset(),
            best=None if row % 3 else row % 4,
        )
        for row, sampling in enumerate(MIXED)
    ]


def choose_alone_and_together(rank: int, world_size: int) -> None:
    for vocabulary, dtype in itertools.product((11, 3000), (torch.float32, torch.float64, torch.bfloat16)):
        choose_mixed(vocabulary, dtype)


def choose_mixed(vocabulary: int, dtype: torch.dtype) -> None:
    """Choose rows of different options alone, together and in another order."""
    for seed in range(5):
        logits, draws = mixed(vocabulary, seed)
        logits = logits.to(dtype)
        together = choose_tokens(logits, draws)
        assert together == [choose_tokens(logits[row : row + 1], [draw])[0] for row, draw in enumerate(draws)]
        turned = choose_tokens(logits.flip(0), draws[::-1])
        assert turned[::-1] == together
        for draw, chosen in zip(draws, together, strict=True):
            assert chosen.token not in draw.forbidden
            assert (chosen.log_probability is None) == (draw.best is None)
            assert len(chosen.best) == (draw.best or 0)


def test_a_row_is_chosen_alike_alone_and_beside_any_others() -> None:
    choose_alone_and_together(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_of_equal_ones_the_lowest_id_is_taken(dtype: torch.dtype, rows: int) -> None:
    for vocabulary in (1, 7, 1000, 49152 if rows == 64 else 200_000):
        logits = torch.randint(0, 2, (rows, vocabulary), generator=torch.Generator().manual_seed(rows)).to(dtype)
        logits[0] = 1
        logits[-1, : vocabulary // 2] = 0
        expected = [row.index(max(row)) for row in logits.tolist()]
        for draw in (
            Draw(sampling=GREEDY, seed=0, position=0),
            Draw(sampling=Sampling(repetition_penalty=2.0), seed=0, position=0, seen=[vocabulary]),
        ):
            assert [chosen.token for chosen in choose_tokens(logits, [draw] * rows)] == expected


@pytest.mark.parametrize("sampling", [*MIXED[:7], Sampling(temperature=1.0, top_k=2, top_p=0.5, min_p=0.5)], ids=str)
def test_what_is_not_finite_is_named_and_not_chosen(sampling: Sampling) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    logits[0, 7], logits[1, 299], logits[2] = nan, inf, -inf
    logits[3, 1:] = -inf
    logits[4, ::2] = -inf
    logits[5, 3], logits[5, 4] = nan, inf
    draws = [Draw(sampling=sampling, seed=1, position=row, seen=(1, 7), best=3) for row in range(6)]
    chosen = choose_tokens(logits, draws)
    assert [chosen[row] for row in (0, 1, 2, 5)] == [Chosen(NOT_FINITE)] * 4
    assert chosen[3].token == 0
    assert chosen[3].best == ((0, 0.0), (1, -inf), (2, -inf))
    assert chosen[4].token % 2 == 1
    assert choose_tokens(logits, [replace(draw, best=None) for draw in draws])[4].token == chosen[4].token


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53, 1.0])
def test_no_number_leads_to_an_impossible_token(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of the distribution have tokens of probability 0 behind them."""
    monkeypatch.setattr(choosing, "uniform", lambda draw: number)
    logits = torch.tensor([[-inf, -inf, 2.0, -inf, 0.3, 1.0, -inf, -inf]])
    several: tuple[dict[str, Any], ...] = ({}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 0.01}, {"temperature": 0.3})
    for options in several:
        draw = Draw(sampling=Sampling(**{"temperature": 1.0, **options}), seed=0, position=0)
        first, last = 2, 5
        assert choose_tokens(logits, [draw])[0].token == (last if number else first)


def test_ends_that_are_forbidden_are_chosen_only_where_nothing_else_can_be() -> None:
    logits = torch.tensor([[0.0, 9.0, 8.0, -inf]])
    for sampling in (GREEDY, Sampling(temperature=1.0)):
        draw = Draw(sampling=sampling, seed=0, position=0, forbidden=frozenset({1, 99}))
        assert choose_tokens(logits, [draw])[0].token == 2
        everything = replace(draw, forbidden=frozenset({0, 1, 2}))
        assert choose_tokens(logits, [everything])[0].token == 1


def test_a_penalty_counts_each_token_once_and_knows_no_token_beyond_the_vocabulary() -> None:
    logits = torch.tensor([[4.0, 3.9, 1.0], [-1.0, -1.1, -8.0]])
    sampling = Sampling(repetition_penalty=1.5)
    for seen in ([0, 0, 0, 3, 500], torch.tensor([0, 3])):
        draws = [Draw(sampling=sampling, seed=0, position=0, seen=seen)] * 2
        assert [chosen.token for chosen in choose_tokens(logits, draws)] == [1, 1]
    once = Draw(sampling=Sampling(repetition_penalty=2.0), seed=0, position=0, seen=[0, 0])
    assert choose_tokens(torch.tensor([[4.0, 1.5]]), [once])[0].token == 0  # twice would leave it 1
    assert choose_tokens(logits, [replace(once, seen=[])] * 2)[1].token == 0


def test_log_probabilities_are_those_of_the_model() -> None:
    probabilities = torch.tensor([[0.5, 0.125, 0.125, 0.25]], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        draw = Draw(
            sampling=Sampling(temperature=0.5, top_k=1, repetition_penalty=9.0),
            seed=0,
            position=0,
            seen=[0],
            forbidden=frozenset({3}),
            best=3,
        )
        (chosen,) = choose_tokens(probabilities.log().to(dtype) + 3, [draw])
        assert chosen.token in (1, 2)
        near = 1e-12 if dtype == torch.float64 else 1e-6
        assert chosen.log_probability == pytest.approx(log(0.125), abs=near)
        assert [token for token, _ in chosen.best] == [0, 3, 1]
        assert [value for _, value in chosen.best] == pytest.approx([log(0.5), log(0.25), log(0.125)], abs=near)
        (few,) = choose_tokens(probabilities.log().to(dtype), [replace(draw, best=0)])
        assert few.log_probability is not None
        assert few.best == ()
        assert len(choose_tokens(probabilities, [replace(draw, best=50)])[0].best) == 4


def test_no_rows_are_no_tokens() -> None:
    assert choose_tokens(torch.empty(0, 5), []) == []
