"""What scores are, and which heads of a rank have which."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError
from scaling.core.nn.scores import Scores


@given(heads=st.integers(1, 12), data=st.data())
def test_each_head_has_a_window_or_none_whoever_holds_it(heads: int, data: st.DataObject) -> None:
    parts = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    windowed = data.draw(st.none() | st.integers(0, heads + 2))
    scores = Scores(scale=0.5, window=3, cap=7.0, windowed_heads=windowed)
    own = heads // parts
    found: dict[int, Scores] = {}
    for rank in range(parts):
        entries = scores.of_heads(range(rank * own, (rank + 1) * own))
        assert len({of for _, of in entries}) == len(entries)  # none apart that have the same
        found.update((head, of) for some, of in entries for head in some)
    assert list(found) == list(range(heads))
    for head, of in found.items():
        window = 3 if windowed is None or head < windowed else None
        assert of == Scores(scale=0.5, window=window, cap=7.0)


def test_the_least_that_means_something_is_taken() -> None:
    assert Scores(scale=1.0, window=1, cap=0.25, windowed_heads=0).window == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"window": 0}, "a window of 0 keys is none; a token sees itself: give 1 or more"),
        ({"cap": 0.0}, "scores cannot be capped at 0; give a positive number"),
        ({"cap": float("nan")}, "scores cannot be capped at nan"),
        ({"windowed_heads": 2}, "2 heads have a window of None keys; give a window"),
        ({"window": 4, "windowed_heads": -1}, "-1 heads have a window of 4 keys"),
    ],
)
def test_scores_that_mean_nothing_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Scores(scale=1.0, **options)
