"""Numbers of ranks as people read them."""

from __future__ import annotations

import pytest

from scaling.core.topology.ranks import enumerate_ranks


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([3], "rank 3"),
        ([0, 2, 3], "ranks 0, 2-3"),
        ([5, 2, 0, 1], "ranks 0-2, 5"),
        ([0, 2, 4], "ranks 0, 2, 4"),
        ([7, 8], "ranks 7-8"),
    ],
)
def test_consecutive_numbers_are_drawn_together(ranks: list[int], text: str) -> None:
    assert enumerate_ranks(ranks) == text
