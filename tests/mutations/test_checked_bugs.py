"""The tests of texts, prompts and timelines catch what can go wrong there."""

from __future__ import annotations

import pytest

from tests.mutations.mutate import mutated
from tests.mutations.text_bugs import TEXT_BUGS, CheckedBug
from tests.mutations.timeline_bugs import TIMELINE_BUGS


@pytest.mark.parametrize("bug", [*TEXT_BUGS, *TIMELINE_BUGS], ids=lambda bug: bug.name)
def test_the_bug_is_caught(bug: CheckedBug) -> None:
    bug.check()
    with mutated(bug.target, bug.edits), pytest.raises(AssertionError):
        bug.check()
