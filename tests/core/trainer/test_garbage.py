"""Garbage is collected at every so many steps, and Python has it back afterwards."""

from __future__ import annotations

import gc

import pytest

from scaling.core.trainer.garbage import garbage_collected


@pytest.mark.parametrize(("interval", "steps"), [(3, [3, 6]), (0, [])])
def test_garbage_is_collected_at_multiples_of_the_interval(
    interval: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[int] = []
    with garbage_collected(interval) as collect:
        assert gc.isenabled() is (interval == 0)
        for step in range(1, 8):
            monkeypatch.setattr(gc, "collect", lambda generation, step=step: collected.append(step))
            collect(step)
    assert collected == steps
    assert gc.isenabled()


def test_what_a_program_keeps_from_being_scanned_stays_so() -> None:
    """The tests themselves do so with all that they import."""
    assert gc.get_freeze_count() > 0
    with garbage_collected(3):
        pass
    assert gc.get_freeze_count() > 0
