"""Sampling draws from what top-k and top-p keep, by the probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.transformer.inference.sampling import Sampling, choose, keep_top_k, keep_top_p

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


@given(values=LOGITS, seed=st.integers(0, 100), k=st.integers(1, 3))
def test_only_what_is_kept_is_drawn(values: list[float], seed: int, k: int) -> None:
    logits = torch.tensor([values])
    drawn = choose(logits, Sampling(temperature=0.7, top_k=k, top_p=0.9), torch.Generator().manual_seed(seed))
    assert logits[0, drawn] >= sorted(values, reverse=True)[: min(k, len(values))][-1]
    assert choose(logits, Sampling()) == logits.argmax()


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 5e-324}])
def test_what_leaves_one_token_takes_the_most_likely(sampling: dict[str, Any]) -> None:
    logits = torch.tensor([[-30.0, 90.0, 80.0, 89.5], [2.0, 2.5, 2.0, 1.0]])
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(choose(logits, Sampling(**{"temperature": 1.0, **sampling}), generator), logits.argmax(-1))


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    drawn = choose(logits, Sampling(temperature=1.0), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.015)


# Text.
