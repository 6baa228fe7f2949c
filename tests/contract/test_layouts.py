"""Every layout is the same training run: steps in float64, compared with a single process in everything."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.contract.layouts import LAYOUTS, LayoutCase
from tests.contract.models import MODELS, config_of, recipe
from tests.contract.options import OPTION_LAYOUTS, OPTION_MODELS
from tests.contract.runs import Job, Reference, differences, follow, record

STEPS = 20
FEW = 5  # past the warm-up of the learning rate, where what goes wrong has begun to
TOLERANCE = 1e-10

QUANTITIES = {
    "initial weights",
    "loss",
    "weight",
    "gradients",
    "first gradients",
    "gradient norm",
    "final weights",
    "evaluation loss",
}

WORLDS = sorted({(model, case.world_size) for model, cases in LAYOUTS.items() for case in cases})
QUICK = [("llama", 1), ("llama", 2), ("gpt", 1), ("gpt", 2), ("mqa", 1), ("mqa", 2)]

RUNS = [
    *((*world, FEW) for world in QUICK),
    *(pytest.param(*world, STEPS, marks=pytest.mark.slow, id=f"{world[0]}-{world[1]}") for world in WORLDS),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Reference]:
    """Return the run of a model in one process, which takes each global batch as a whole."""

    @functools.cache
    def run_of(model: str, steps: int) -> Reference:
        config = config_of(model)
        return record(recipe(config), config.topology, tmp_path_factory.mktemp(model), steps=steps)

    return run_of


def job(model: str, case: LayoutCase, steps: int) -> Job:
    config = config_of(model, case.settings, case.optimizer)
    return Job(str(case), recipe(config), config.topology, steps)


@pytest.mark.parametrize(("model", "world_size", "steps"), RUNS)
def test_layouts_are_the_same_training_run(
    model: str, world_size: int, steps: int, reference: Callable[[str, int], Reference]
) -> None:
    jobs = [job(model, case, steps) for case in LAYOUTS[model] if case.world_size == world_size]
    assert_same(model, jobs, reference(model, steps))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model in ("sandwich", "post", "float8") else pytest.mark.slow)
        for model in OPTION_MODELS
    ],
)
def test_every_option_of_the_architecture_is_the_same_run_in_every_layout(
    model: str, reference: Callable[[str, int], Reference]
) -> None:
    assert_same(model, [job(model, case, FEW) for case in OPTION_LAYOUTS], reference(model, FEW))


def assert_same(model: str, jobs: Sequence[Job], run: Reference) -> None:
    problems = []
    for name, runs in follow(run.directory, jobs).items():
        found = differences(run, name, runs)
        assert set(found) == QUANTITIES
        limits = {"initial weights": 0.0, "weight": 0.0}
        problems += [
            f"{model} {name}: {quantity} {relative:.1e} apart ({where})"
            for quantity, (relative, where) in found.items()
            if not relative <= limits.get(quantity, TOLERANCE)
        ]
    assert not problems, "\n".join(["", *problems])


def test_the_sweep_covers_what_the_contract_promises() -> None:
    cases = [case for cases in LAYOUTS.values() for case in cases]
    assert len(cases) >= 40
    assert len(set(map(str, cases))) >= 40
    assert max(case.world_size for case in cases) == 8
    for option in (
        *({"zero": True}, {"sequence_parallel": True}, {"pipe_schedule": "gpipe"}),
        *({"pipe_schedule": "interleaved_1f1b"}, {"pipe_partition_method": "balanced"}),
        *({"activation_checkpointing_type": "every_layer"}, {"activation_checkpointing_type": "every_pipe_stage"}),
    ):
        assert any(option.items() <= {**case.topology, **case.optimizer}.items() for case in cases), option
    assert any("pipe_partition_overwrite" in case.topology for case in cases)
    assert {MODELS[model]["weight_tying"] for model in LAYOUTS} == {True, False}
    for model, cases_of_model in LAYOUTS.items():
        kv_heads = MODELS[model].get("attention_num_kv_heads", 8)
        sizes = {case.model for case in cases_of_model}
        assert any(MODELS[model]["vocab_size"] % size for size in sizes), "a vocabulary that does not divide"
        assert kv_heads == 8 or any(kv_heads < size for size in sizes), "fewer key-value heads than ranks"


def test_the_data_have_what_layouts_trip_over(reference: Callable[[str, int], Reference]) -> None:
    """Documents in a row, padding, and a micro-batch in which nothing counts."""
    training = recipe(config_of("llama")).training
    batch = training.collate([training[index] for index in range(24)], range(24), [True] * 24)
    weights = batch.targets.loss_weights
    assert (batch.inputs.document_ids.amax(1) > 1).any()
    assert (weights.sum(1) == 0).any()
    counts = {float(row) for row in weights.sum(1)}
    assert len(counts) > 3
    assert reference("llama", FEW).run.numbers[0].weight < weights.numel()


def test_runs_are_compared_with_something(reference: Callable[[str, int], Reference]) -> None:
    """Weights move, gradients are clipped, losses differ from step to step."""
    run = reference("gpt", FEW).run
    assert len({numbers.loss for numbers in run.numbers}) == FEW
    assert run.numbers[0].gradient_norm > 1.0
    weights = Path(reference("gpt", FEW).directory, "reference", f"weights {FEW}")
    assert len(list(weights.iterdir())) == len(run.held)
