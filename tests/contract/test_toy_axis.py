"""A toy context axis is the same training run in combination with every other axis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.core import OptimizerConfig
from tests.contract.runs import Job, differences, follow, record
from tests.contract.toy_axis import RECIPE, ContextTopologyConfig

STEPS = 6
ZERO = OptimizerConfig.from_dict({"zero": True, "allreduce_bucket_size": 500, "eps": 1e-3})
PLAIN = OptimizerConfig.from_dict({"eps": 1e-3})
LAYOUTS: dict[str, tuple[dict[str, Any], OptimizerConfig]] = {
    "context": ({"context": 2}, PLAIN),
    "context, sharded": ({"context": 2}, ZERO),
    "context x model": ({"context": 2, "model": 2}, ZERO),
    "context x pipe": ({"context": 2, "pipe": 2}, PLAIN),
    "context x data": ({"context": 2, "data": 2}, ZERO),
    "four": ({"context": 4}, ZERO),
}


def topology(sizes: dict[str, int]) -> ContextTopologyConfig:
    names = {"pipe": 1, "data": 1, "model": 1, "context": 1, **sizes}
    settings = {f"{name}_parallel_size": size for name, size in names.items()}
    return ContextTopologyConfig.from_dict(
        {**settings, "global_batch_size": 8, "gradient_accumulation_steps": 2, "device": "cpu"}
    )


@pytest.mark.slow
def test_an_axis_joins_the_contract_by_its_size(tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer=PLAIN)
    reference = record(recipe, topology({}), tmp_path, steps=STEPS)
    problems = []
    for world in (2, 4):
        jobs = [
            Job(name, replace(recipe, optimizer=optimizer), config, STEPS)
            for name, (sizes, optimizer) in LAYOUTS.items()
            if (config := topology(sizes)).world_size == world
        ]
        for name, runs in follow(tmp_path, jobs).items():
            problems += [
                f"{name}: {quantity} {relative:.1e} apart ({where})"
                for quantity, (relative, where) in differences(reference, name, runs).items()
                if not relative <= (0.0 if quantity == "initial weights" else 1e-10)
            ]
    assert not problems, "\n".join(["", *problems])
