"""The cache of generation: positions that come bit by bit attend as those of the whole sequence do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.nn.attention_cache import CachedAttention, KeyValueCache
from scaling.core.nn.scores import Scores
from tests.core.nn.test_attention_maker import SCORES, expected
from tests.reference.compare import close
from tests.reference.worlds import random

SAMPLES = torch.tensor([5, 0, 9])
CAUSAL = {name: scores for name, scores in SCORES.items() if scores.causal}


@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_a_cache_returns_all_it_was_given_in_order(chunks: list[int]) -> None:
    cache, length = KeyValueCache(), sum(chunks)
    keys, values = random(2, length, 3, 4, seed=1), random(2, length, 3, 4, seed=2)
    start = 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        found = cache.append(keys[:, part], values[:, part])
        start += chunk
        assert cache.length == start
        assert torch.equal(found[0], keys[:, :start])
        assert torch.equal(found[1], values[:, :start])


def test_a_cache_seldom_moves_what_it_holds() -> None:
    cache, one = KeyValueCache(), random(1, 1, 1, 1, seed=1)
    kept = [cache.append(one, one)[0] for _ in range(64)]
    assert len({keys.data_ptr() for keys in kept}) <= 7  # 1, 2, 4, ... 64 positions


@pytest.mark.parametrize("chunks", [[9], [5, 4], [1] * 9, [4, 1, 1, 3], [2, 2, 5]])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", CAUSAL)
def test_new_positions_attend_to_those_before_them(chunks: list[int], kv_heads: int, name: str) -> None:
    scores: Scores = CAUSAL[name]
    q, k, v = (random(3, 9, heads, 6, seed=n) for n, heads in enumerate((4, kv_heads, kv_heads)))
    whole = expected(q, k, v, scores=scores)
    core, start = CachedAttention(KeyValueCache(), scores, heads=range(4)), 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        close(core(q[:, part], k[:, part], v[:, part], None, SAMPLES), whole[:, part])
        start += chunk
    assert core.cache.length == 9
