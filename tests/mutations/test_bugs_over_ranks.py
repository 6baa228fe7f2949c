"""The tests of inference over ranks, and of statistics, catch what could go wrong there."""

from __future__ import annotations

import pytest

from tests.distributed import run_distributed, run_world
from tests.mutations.inference_bugs import INFERENCE_BUGS
from tests.mutations.mutate import mutated
from tests.mutations.over_ranks import BugOverRanks
from tests.mutations.statistics_bugs import STATISTICS_BUGS

BUGS = (*INFERENCE_BUGS, *STATISTICS_BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bug_fits_the_code(bug: BugOverRanks) -> None:
    with mutated(bug.target, bug.edits):
        pass


def check_with(rank: int, world_size: int, number: int) -> None:
    bug = BUGS[number]
    with mutated(bug.target, bug.edits):
        bug.check(rank, world_size)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BUGS)), ids=lambda number: BUGS[number].name)
def test_every_bug_is_caught(number: int) -> None:
    bug = BUGS[number]
    run_distributed(bug.check, bug.ranks)
    outcomes = run_world(check_with, bug.ranks, number, timeout=30)
    assert any(outcome.error is not None and not isinstance(outcome.error, NameError) for outcome in outcomes)
