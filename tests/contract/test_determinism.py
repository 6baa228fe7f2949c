"""The same layout twice is the same run bit by bit, with dropout on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.layouts import LAYERS, SMALL_BUCKETS, SP, LayoutCase, interleaved
from tests.contract.models import config_of, recipe
from tests.contract.runs import Job, follow

LESS_MEMORY = {"grad_dtype": "bfloat16", "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}
CASES = [
    LayoutCase(1, 2, 2, 6, SP, SMALL_BUCKETS),
    LayoutCase(2, 2, 1, 6, {**interleaved(2), **LAYERS}),
    LayoutCase(1, 2, 2, 6, SP, {**SMALL_BUCKETS, **LESS_MEMORY}),
]


@pytest.mark.parametrize(
    ("precision", "steps"),
    [("float32", 4), *(pytest.param(precision, 20, marks=pytest.mark.slow) for precision in ("float32", "bfloat16"))],
)
def test_the_same_layout_twice_is_bitwise_equal(precision: str, steps: int, tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        config = config_of("gpt", case.settings, case.optimizer, precision=precision)
        names = ("first", "second")
        jobs = [Job(name, recipe(config), config.topology, steps, record=name == "first") for name in names]
        first, second = follow(tmp_path / str(number), jobs).values()
        for one, other in zip(first, second, strict=True):
            assert one.numbers == other.numbers
            assert one.evaluation == other.evaluation
            deviations = [deviation for step in other.gradients for deviation in step] + other.weights
            assert deviations
            assert not [deviation for deviation in deviations if deviation.different]
