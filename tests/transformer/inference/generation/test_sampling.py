"""Filters keep what they say, as those of `transformers` do, and draws follow what is kept."""

from __future__ import annotations

import itertools
from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scaling.core import ConfigError
from scaling.transformer.inference.generation.sampling import (
    Sampling,
    drawable,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalized,
)

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


@given(values=LOGITS, k=st.integers(1, 14))
def test_top_k_keeps_the_largest(values: list[float], k: int) -> None:
    logits = torch.tensor([values])
    kept = keep_top_k(logits, k)[0]
    staying = kept.isfinite()
    assert torch.equal(kept[staying], logits[0][staying])
    assert int(staying.sum()) >= min(k, len(values))  # more where values tie
    assert not (~staying).any() or kept[staying].min() > logits[0][~staying].max()


@given(values=LOGITS, p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_add_up(values: list[float], p: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    kept = keep_top_p(logits, p)[0]
    staying = kept.isfinite()
    probabilities = logits[0].softmax(dim=-1)
    assert torch.equal(kept[staying], logits[0][staying])
    assert not (~staying).any() or kept[staying].min() >= logits[0][~staying].max()
    assert probabilities[staying].sum() >= p - 1e-9
    assert probabilities[staying].sum() - probabilities[staying].min() < p + 1e-9


@given(values=LOGITS, p=st.floats(1e-6, 1.0))
def test_min_p_keeps_those_not_far_below_the_most_likely(values: list[float], p: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    staying = keep_min_p(logits, p)[0].isfinite()
    shares = (logits[0] - logits[0].max()).exp()
    assert (shares[staying] >= p * (1 - 1e-9)).all()
    assert (shares[~staying] < p * (1 + 1e-9)).all()


def test_of_equally_likely_tokens_the_lower_ids_come_first() -> None:
    scores = torch.zeros(1, 300)
    kept, ids = drawable(scores, Sampling(temperature=1.0, top_p=0.01))
    assert ids[kept.isfinite()].tolist() == [0, 1, 2]
    kept, _ = drawable(scores, Sampling(temperature=1.0, top_k=2))
    assert int(kept.isfinite().sum()) == 300  # all equal the second


def of_transformers(logits: Tensor, sampling: Sampling, ids: Tensor) -> Tensor:
    """Return probabilities [r, V] by the classes of `transformers`, in its order."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores: Tensor = processors(ids, logits)
    return scores.softmax(dim=-1)


FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 7},
    {"top_k": 100_000},
    {"top_p": 0.8},
    {"temperature": 0.5, "top_p": 0.999},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7, "top_k": 40},
    {"temperature": 1.3, "top_k": 60, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]


def filter_like_transformers(rank: int, world_size: int) -> None:
    for options, vocabulary in itertools.product(FILTERS, (11, 1000, 5003)):
        compare_filters(options, vocabulary)


def test_filters_are_those_of_transformers() -> None:
    """Also where only contenders are sorted."""
    filter_like_transformers(0, 1)


def compare_filters(options: dict[str, Any], vocabulary: int) -> None:
    sampling = Sampling(**{"temperature": 1.0, **options})
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(5, vocabulary, generator=generator) * torch.tensor([[0.1], [1], [3], [6], [20]])
    seen = torch.randint(0, vocabulary, (5, 9), generator=generator)
    ours = logits.scatter(1, seen, penalized(logits.gather(1, seen), sampling.repetition_penalty))
    kept, ids = drawable(ours, sampling)
    probabilities = torch.zeros(5, vocabulary, dtype=torch.float64).scatter_add(1, ids, kept.softmax(dim=-1))
    theirs = of_transformers(logits, sampling, seen).double()
    assert torch.equal(probabilities > 1e-30, theirs > 1e-30), (options, vocabulary)
    torch.testing.assert_close(probabilities, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "sampling", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 5e-324}, {"temperature": 1e-38}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_leaves_one_token_takes_the_most_likely(sampling: dict[str, Any], dtype: torch.dtype) -> None:
    logits = torch.tensor([[-30.0, 90.0, 80.0, 89.5], [2.0, 2.5, 2.0, 1.0], [-3e38, -inf, 3e38, 0]], dtype=dtype)
    kept, ids = drawable(
        logits.to(torch.promote_types(dtype, torch.float32)), Sampling(**{"temperature": 1, **sampling})
    )
    weights = torch.zeros(logits.shape, dtype=torch.float64).scatter_add(1, ids, kept.exp())
    assert weights.tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_a_temperature_of_any_size_leaves_impossible_tokens_impossible() -> None:
    scores = torch.tensor([[1.0, -inf, 3e8, -3e8]])
    for temperature in (1e-300, 1.0, 1e38, 1e300):
        kept, _ = drawable(scores, Sampling(temperature=temperature))
        assert kept[0, 1] == -inf
        assert kept[0, 2] == 0
        assert not kept.isnan().any()
    assert kept.exp().tolist() == [pytest.approx([1, 0, 1, 1])]


@pytest.mark.parametrize("penalty", [1e-300, 1e-20, 1e20, 1e300])
def test_a_penalty_of_any_size_leaves_numbers(penalty: float) -> None:
    given = torch.tensor([0.0, -inf, 1e30, -1e30, 1.0, -1.0])
    changed = penalized(given, penalty)
    assert changed[0] == 0
    assert changed[1] == -inf
    assert changed[2:].isfinite().all()
    assert torch.equal(changed[2:].sign() * (changed[2:] != 0), given[2:].sign() * (changed[2:] != 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature (-0.1) must be a number of at least 0"),
        ({"temperature": nan}, "temperature (nan) must be a number of at least 0"),
        ({"temperature": inf}, "temperature (inf) must be a number of at least 0"),
        ({"top_k": 0}, "top_k (0) must be at least 1"),
        ({"top_p": 0.0}, "top_p (0.0) must be above 0 and at most 1"),
        ({"top_p": nan}, "top_p (nan) must be above 0 and at most 1"),
        ({"min_p": 0.0}, "min_p (0.0) must be above 0 and at most 1"),
        ({"min_p": 1.01}, "min_p (1.01) must be above 0 and at most 1"),
        ({"min_p": nan}, "min_p (nan) must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty (0.0) must be a number above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty (-1.0) must be a number above 0"),
        ({"repetition_penalty": nan}, "repetition_penalty (nan) must be a number above 0"),
        ({"repetition_penalty": inf}, "repetition_penalty (inf) must be a number above 0"),
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Sampling(**options)
    assert message in str(raised.value)
    assert Sampling(temperature=0.5, top_k=1, top_p=1.0, min_p=1.0, repetition_penalty=5e-324)
