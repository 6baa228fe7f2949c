"""8-bit products with one scale for each operand: what layouts change, and how far apart they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.layouts import LAYERS, SP, LayoutCase, interleaved
from tests.contract.models import config_of, recipe
from tests.contract.options import FLOAT8_SECTIONS
from tests.contract.runs import Job, differences, follow, record

STEPS = 3
BY_TENSORS: dict[str, Any] = {name: {} for name in FLOAT8_SECTIONS}
ALL_OF_ROWS: dict[str, Any] = {name: {"granularity": "row"} for name in FLOAT8_SECTIONS}

SAME_MICRO_BATCH = (LayoutCase(1, 1, 2, 24), LayoutCase(1, 1, 2, 24, {**SP, **LAYERS}), LayoutCase(2, 1, 1, 24))
OTHER_MICRO_BATCH = (LayoutCase(1, 2, 1, 6), LayoutCase(1, 1, 2, 12, SP), LayoutCase(2, 1, 1, 3, interleaved(2)))

# With the same micro-batch all largest elements are the same. With another one, scales are other powers of two, and
# only numbers below 2^-14 of the largest (e4m3) round otherwise: by 2^-18 of it at most, or 4e-6.
BOUND = 4e-6


@pytest.mark.parametrize("scales", [BY_TENSORS, ALL_OF_ROWS], ids=["tensors", "rows"])
@pytest.mark.parametrize(
    ("cases", "bound"), [(SAME_MICRO_BATCH, 1e-10), (OTHER_MICRO_BATCH, BOUND)], ids=["same", "other"]
)
def test_layouts_round_alike_but_for_the_smallest_numbers(
    scales: dict[str, Any], cases: tuple[LayoutCase, ...], bound: float, tmp_path: Path
) -> None:
    config = config_of("gpt", **scales)
    reference = record(recipe(config), config.topology, tmp_path, steps=STEPS)
    jobs = []
    for case in cases:
        ours = config_of("gpt", case.settings, case.optimizer, **scales)
        jobs.append(Job(str(case), recipe(ours), ours.topology, STEPS))
    for name, runs in follow(tmp_path, jobs).items():
        found = differences(reference, name, runs)
        assert found["initial weights"][0] == 0.0
        for quantity in ("loss", "gradient norm", "first gradients"):
            assert found[quantity][0] <= bound, (name, quantity, found[quantity])
