"""Less precise types: layouts differ by the rounding of their sums and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.layouts import LAYERS, SMALL_BUCKETS, SP, ZERO, LayoutCase, interleaved
from tests.contract.models import config_of, recipe
from tests.contract.runs import Job, differences, follow, record

Case = LayoutCase
FEW: dict[str, list[LayoutCase]] = {
    "llama": [Case(1, 1, 1, 3, LAYERS), Case(1, 2, 2, 12, SP, SMALL_BUCKETS), Case(2, 1, 2, 6), Case(1, 1, 4, 24, SP)],
    "gpt": [Case(2, 1, 1, 3, interleaved(2)), Case(2, 2, 1, 6, LAYERS, ZERO), Case(1, 2, 2, 12, SP, ZERO)],
}

# AdamW divides by the root of the second moment. With the usual eps of 1e-8 a gradient that is nothing but rounding
# (1e-8 in float32) is scaled up to a full step of the learning rate; eps has to be above the rounding to see past it.
EPS = {"eps": 1e-3}


def runs_of(
    model: str,
    directory: Path,
    precision: str,
    against: str,
    optimizer: dict[str, Any],
    steps: int,
    *,
    only_layouts: dict[str, Any] | None = None,
) -> list[tuple[str, dict[str, tuple[float, str]]]]:
    """Return the differences of each layout in `precision` from the single process in `against`.

    `only_layouts` are settings of the optimizer that the single process does not have.
    """
    config = config_of(model, optimizer=optimizer, precision=against)
    reference = record(recipe(config), config.topology, directory, steps=steps)
    found = []
    for size in sorted({case.world_size for case in FEW[model]}):
        jobs = []
        for case in FEW[model]:
            if case.world_size == size:
                ours = config_of(
                    model, case.settings, {**case.optimizer, **optimizer, **(only_layouts or {})}, precision=precision
                )
                jobs.append(Job(str(case), recipe(ours), ours.topology, steps))
        for name, runs in follow(reference.directory, jobs).items():
            found.append((name, differences(reference, name, runs)))
    return found


@pytest.mark.parametrize(
    ("model", "steps"), [("gpt", 5), *(pytest.param(model, 20, marks=pytest.mark.slow) for model in FEW)]
)
def test_float32_agrees_to_its_rounding(model: str, steps: int, tmp_path: Path) -> None:
    for name, found in runs_of(model, tmp_path, "float32", "float32", EPS, steps):
        assert found["initial weights"][0] == 0.0
        assert found["loss"][0] < 1e-6, (name, found)
        assert max(relative for relative, _ in found.values()) < 1e-5, (name, found)


# A bfloat16 number has 8 significant bits: one rounding is off by up to u = 2^-8 of it. A layout moves, adds or removes
# roundings (of the partial results that ranks add up; the sums themselves are float32), so it is as far from a run in
# float32 as the single process in bfloat16 is, and no farther. Some 100 roundings of random sign lie between a weight
# and its gradient: sqrt(100) u = 2^-5 of the typical gradient, four times that for the largest of some 10 000 elements.
# Of the loss and the norm, which are sums over many tokens and elements, most of that averages out. Weights after 20
# steps of AdamW have no such bound, since the sign of a rounding can decide an update; the evaluation bounds what comes
# of it.
BFLOAT16 = {"loss": 2.0**-9, "evaluation loss": 2.0**-9, "gradient norm": 2.0**-6, "first gradients": 2.0**-3}


# Gradients in bfloat16 are rounded once for each micro-batch that is added and for each rank, at most 28 times here;
# moments are rounded once a step. In float32, whose own rounding is far below, there are no other roundings.
LESS_MEMORY = {"grad_dtype": "bfloat16", "exp_avg_dtype": "bfloat16", "exp_avg_sq_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("model", "precision"),
    [("gpt", "float32"), *(pytest.param("llama", one, marks=pytest.mark.slow) for one in ("float32", "bfloat16"))],
)
def test_gradients_and_moments_in_bfloat16_are_as_close_to_float32(model: str, precision: str, tmp_path: Path) -> None:
    for name, found in runs_of(model, tmp_path, precision, "float32", EPS, 5, only_layouts=LESS_MEMORY):
        for quantity, bound in BFLOAT16.items():
            assert found[quantity][0] < bound, (name, quantity, found[quantity])


@pytest.mark.parametrize(
    ("model", "steps"), [("gpt", 5), *(pytest.param(model, 20, marks=pytest.mark.slow) for model in FEW)]
)
def test_bfloat16_is_as_close_to_float32_as_its_rounding_allows(model: str, steps: int, tmp_path: Path) -> None:
    for name, found in runs_of(model, tmp_path, "bfloat16", "float32", {}, steps):
        for quantity, bound in BFLOAT16.items():
            assert found[quantity][0] < bound, (name, quantity, found[quantity])
