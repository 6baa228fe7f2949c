"""Numbers of ranks as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def enumerate_ranks(ranks: Sequence[int]) -> str:
    """Return `rank 3` or `ranks 0-2, 5`; consecutive numbers are written as a range."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {text}"
