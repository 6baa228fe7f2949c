"""The tests of texts and prompts catch what can go wrong there."""

from __future__ import annotations

import pytest

from tests.mutations.mutate import mutated
from tests.mutations.text_bugs import TEXT_BUGS, TextBug


@pytest.mark.parametrize("bug", TEXT_BUGS, ids=lambda bug: bug.name)
def test_the_bug_is_caught(bug: TextBug) -> None:
    bug.check()
    with mutated(bug.target, bug.edits), pytest.raises(AssertionError):
        bug.check()
