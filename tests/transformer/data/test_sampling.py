"""An even part of many texts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import DataError
from scaling.transformer.data.sampling import sample_texts, thin


@given(st.lists(st.integers(0, 50)), st.integers(0, 2000))
def test_the_part_stays_within_the_budget_and_keeps_the_order(lengths: list[int], budget: int) -> None:
    texts = [str(number % 10) * length for number, length in enumerate(lengths)]
    kept = list(thin(texts, total=sum(lengths), budget=budget))
    assert sum(map(len, kept)) <= budget
    rest = iter(texts)
    assert all(text in rest for text in kept)
    if budget >= sum(lengths):
        assert kept == texts


def test_the_part_is_spread_over_all_texts() -> None:
    kept = list(thin((f"{number:04d}" for number in range(1000)), total=4000, budget=400))
    assert len(kept) == 100
    assert max(int(later) - int(earlier) for earlier, later in pairwise(kept)) <= 11


def test_documents_of_files_are_sampled_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(100)) + "bad\n")
    with pytest.raises(DataError, match="line 101"):
        list(sample_texts([path], field="text", budget=300))
    kept = list(sample_texts([path], field="text", budget=300, max_bad=1))
    assert 10 <= len(kept) <= 25
