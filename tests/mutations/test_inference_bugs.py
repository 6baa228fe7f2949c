"""The tests of inference over ranks catch what could go wrong there."""

from __future__ import annotations

import pytest

from tests.distributed import run_distributed, run_world
from tests.mutations.inference_bugs import INFERENCE_BUGS, InferenceBug
from tests.mutations.mutate import mutated


@pytest.mark.parametrize("bug", INFERENCE_BUGS, ids=lambda bug: bug.name)
def test_the_bug_fits_the_code(bug: InferenceBug) -> None:
    with mutated(bug.target, bug.edits):
        pass


def check_with(rank: int, world_size: int, number: int) -> None:
    bug = INFERENCE_BUGS[number]
    with mutated(bug.target, bug.edits):
        bug.check(rank, world_size)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(INFERENCE_BUGS)), ids=lambda number: INFERENCE_BUGS[number].name)
def test_every_bug_is_caught(number: int) -> None:
    bug = INFERENCE_BUGS[number]
    run_distributed(bug.check, bug.ranks)
    outcomes = run_world(check_with, bug.ranks, number, timeout=30)
    assert any(outcome.error is not None and not isinstance(outcome.error, NameError) for outcome in outcomes)
