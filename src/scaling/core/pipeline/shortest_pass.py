"""Move the boundaries of pipeline stages while that shortens a simulated pass. Pure.

The most expensive stage alone does not determine how long a pass is. A rank has several stages where they are
interleaved, and a short first stage lets the other ranks begin sooner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

from scaling.core.pipeline.actions import Action, Backward, Compute
from scaling.core.pipeline.lowering import lower_all
from scaling.core.pipeline.schedules import Schedule
from scaling.core.pipeline.simulate import simulate

MOST_ACTIONS: Final = 60_000
"""How many actions are simulated in all, in about a second; then the best cut so far is taken."""

PASSES_OF_RANKS: Final = 2
"""How many times as many micro-batches as ranks are enough to tell cuts apart: more repeat the same pattern."""


def shortest_pass(
    costs: Sequence[float], partition: Sequence[range], schedule: Schedule, *, ranks: int, micro_batches: int
) -> tuple[range, ...]:
    """Return a cut whose pass gets no shorter by moving one boundary, or several in a row, by one layer.

    `costs[i]` is the relative time of layer i, a third of it forward. The search begins at `partition` and takes the
    best move each time. Of equally good moves it takes the first, so that all ranks find the same cut.
    """
    boundaries = [0, *(stage.stop for stage in partition)]
    lists = lower_all(schedule, ranks, min(micro_batches, PASSES_OF_RANKS * ranks))
    length = sum(map(len, lists))
    before = list(accumulate(costs, initial=0.0))

    def pass_of(cut: Sequence[int]) -> float:
        def duration(action: Action) -> float:
            if not isinstance(action, Compute):
                return 0.0
            cost = before[cut[action.stage + 1]] - before[cut[action.stage]]
            return 2 * cost if isinstance(action, Backward) else cost

        return simulate(lists, duration=duration).makespan

    best, left = pass_of(boundaries), MOST_ACTIONS - length
    while True:
        found = None
        for moved in _moves(boundaries):
            if left < length:
                break
            left -= length
            if (time := pass_of(moved)) < best * (1 - 1e-9):
                best, found = time, moved
        if found is None:
            return tuple(range(start, stop) for start, stop in pairwise(boundaries))
        boundaries = found


def _moves(boundaries: Sequence[int]) -> Iterator[list[int]]:
    """Yield what one boundary, then two in a row and so on, may become when it moves by a layer."""
    inner = len(boundaries) - 2
    for count in range(1, inner + 1):
        for first in range(1, inner - count + 2):
            for by in (-1, 1):
                moved = list(boundaries)
                for number in range(first, first + count):
                    moved[number] += by
                if all(start < stop for start, stop in pairwise(moved)):
                    yield moved
