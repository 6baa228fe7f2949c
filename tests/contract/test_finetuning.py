"""Every method of fine-tuning is the same training run in every layout, and leaves its base as it is, bit by bit."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest

from scaling.transformer.config.groups import group_patterns
from scaling.transformer.config.model_plan import plan_of
from tests.contract.finetuning import ALL_LINEARS, FINETUNING_LAYOUTS, finetuned
from tests.contract.models import recipe
from tests.contract.runs import Job, Reference, differences, follow, record
from tests.contract.test_layouts import QUANTITIES, TOLERANCE

STEPS = 3  # B, which starts at zero, lets A learn in the second
WORLDS = sorted({(model, case.world_size) for model, cases in FINETUNING_LAYOUTS.items() for case in cases})
QUICK = [("lora", 2), ("dora", 2)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Return the run of a model with its methods in one process."""

    @functools.cache
    def run_of(model: str) -> Reference:
        config = finetuned(model)
        return record(recipe(config), config.topology, tmp_path_factory.mktemp("run"), steps=STEPS)

    return run_of


def trained_by(model: str) -> set[str]:
    """Return what a model's methods train, by the plan."""
    config = finetuned(model)
    architecture = config.transformer_architecture
    patterns = group_patterns(config.training_groups, architecture)
    return {
        parameter.name
        for parameter in plan_of(architecture).parameters()
        if any(pattern.matches(parameter.name.split(".", 2)[2]) for pattern in patterns)
    }


@pytest.mark.parametrize(
    ("model", "world_size"),
    [pytest.param(*world, marks=() if world in QUICK else pytest.mark.slow) for world in WORLDS],
)
def test_a_fine_tuning_is_the_same_in_every_layout(
    model: str, world_size: int, reference: Callable[[str], Reference]
) -> None:
    """Losses, gradients and weights are those of one process; all that is trained has moved, and nothing else has."""
    alone, jobs = reference(model), []
    for case in FINETUNING_LAYOUTS[model]:
        if case.world_size == world_size:
            config = finetuned(model, case.settings, case.optimizer)
            jobs.append(Job(str(case), recipe(config), config.topology, STEPS))
    trained = trained_by(model)
    assert alone.run.moved == trained
    problems = []
    for name, runs in follow(alone.directory, jobs).items():
        found = differences(alone, name, runs)
        assert set(found) == QUANTITIES
        problems += [
            f"{model} {name}: {quantity} {relative:.1e} apart ({where})"
            for quantity, (relative, where) in found.items()
            if not relative <= {"initial weights": 0.0, "weight": 0.0}.get(quantity, TOLERANCE)
        ]
        assert set().union(*(run.moved for run in runs)) == trained, name
    assert not problems, "\n".join(["", *problems])


def test_the_sweep_covers_every_method_module_and_kind_of_layout() -> None:
    kinds: dict[str, set[str]] = {}
    for model in FINETUNING_LAYOUTS:
        for name in trained_by(model):
            *_, module, method, parameter = re.sub(r"adapter_small\.\w+", "adapter_small", name).split(".")
            kinds.setdefault(f"{method.split('_')[0]} {parameter}", set()).add(module)
    tables, linears = {"embedding", "linear"}, set(ALL_LINEARS)
    assert kinds["lora a"] == kinds["lora b"] == linears | tables
    assert kinds["lora bias"] == linears | {"embedding"}
    assert kinds["lora magnitude"] == linears | tables
    assert kinds["ia3 scale"] == linears - {"siglu_weight"}
    assert kinds["bitfit bias"] == {"query", "key", "value", "dense", "dense_out"}
    assert kinds["adapter weight"] == {"add_attention", "add_mlp"}
    assert {"softprompt weight", "token weight"} <= set(kinds)
    assert {"layers.1.self_attention.query.bias", "layers.3.norm.bias"} <= trained_by("fused")
    assert trained_by("one block").isdisjoint(name for name in trained_by("lora") if not name.startswith("layers.2."))
    cases = {str(case): case for cases in FINETUNING_LAYOUTS.values() for case in cases}
    assert len(cases) >= 12
    assert {case.model for case in cases.values()} >= {1, 2, 4, 8}
    assert {case.pipe for case in cases.values()} >= {1, 2, 3}
    assert any((case.pipe, case.data, case.model) == (2, 2, 2) for case in cases.values())
