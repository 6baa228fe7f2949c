"""How long a rank waits for rank 0: what is left of its time, and never no time at all."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from scaling.core.topology.base_store import _left


@pytest.mark.parametrize(("left", "most", "expected"), [(-5, 60, 1), (0.2, 60, 1), (30, 60, 30), (90, 60, 60)])
def test_a_limit_is_what_is_left_between_a_second_and_the_most(left: float, most: float, expected: float) -> None:
    assert _left(time.monotonic() + left, most=most).total_seconds() == pytest.approx(expected, abs=0.5)


def test_nobody_waits_longer_than_a_day() -> None:
    assert _left(time.monotonic() + 1e9) == timedelta(days=1)
