"""Bugs that a function of a test notices, run by each rank of a world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.mutations.mutate import Edit


@dataclass(frozen=True)
class BugOverRanks:
    """What goes wrong, in which function, and a check that must not pass then."""

    name: str
    target: str
    edits: Sequence[Edit]
    check: Callable[[int, int], object]
    """Takes rank and world size, as what `run_distributed` runs; it passes without the bug."""
    ranks: int
