"""Contenders are those that reach a bound, and the largest are found among them."""

from __future__ import annotations

from math import inf

import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.transformer.inference.generation.contenders import bound_of_top, contenders, most_likely


@given(
    rows=st.integers(1, 4),
    vocabulary=st.integers(1, 400),
    levels=st.sampled_from([1, 3, 1000]),
    most=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_the_largest_come_in_order_and_equal_ones_by_their_ids(
    rows: int, vocabulary: int, levels: int, most: int, seed: int
) -> None:
    scores = torch.randint(0, levels, (rows, vocabulary), generator=torch.Generator().manual_seed(seed)).float()
    scores[scores == 0] = -inf
    most = min(most, vocabulary)
    expected = [sorted(range(vocabulary), key=lambda token: (-row[token], token))[:most] for row in scores.tolist()]
    assert most_likely(scores, most).tolist() == expected
    bound = bound_of_top(scores, most) if most else None
    assert bound is None or ((scores >= bound).sum(dim=-1) >= most).all()


def test_rows_of_fewer_contenders_end_in_what_is_impossible() -> None:
    scores = torch.tensor([[1.0, 5, 4], [9, 8, 7], [0, 1, 2]])
    found, ids = contenders(scores, torch.tensor([[4.0], [7], [3]]))
    assert found.tolist() == [[5, 4, -inf], [9, 8, 7], [-inf, -inf, -inf]]
    assert ids[0, :2].tolist() == [1, 2]
    assert ids[1].tolist() == [0, 1, 2]
    found, ids = contenders(scores, None)
    assert torch.equal(found, scores)
    assert ids.tolist() == [[0, 1, 2]] * 3


def test_few_of_many_are_looked_at() -> None:
    scores = torch.randn(2, 49152, generator=torch.Generator().manual_seed(0))
    found, _ = contenders(scores, bound_of_top(scores, 50))
    assert 50 <= found.shape[1] < 80
