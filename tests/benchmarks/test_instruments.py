"""The instruments of the benchmarks: the parts of a step add up, and the roofline has every product of the model."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaling.transformer import TransformerConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.flops import flops_per_token


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


MODELS: dict[str, dict[str, Any]] = {
    "untied": {"mlp_type": "swiglu", "mlp_factor": 2.0, "weight_tying": False},
    "tied": {"weight_tying": True},
    "grouped heads": {"attention_num_kv_heads": 2, "attention_qkv_in_one": False},
}
LAYOUTS: dict[str, dict[str, int]] = {
    "alone": {},
    "model": {"model_parallel_size": 2},
    "pipe": {"pipe_parallel_size": 2, "gradient_accumulation_steps": 4},
    "all": {"model_parallel_size": 2, "pipe_parallel_size": 2, "data_parallel_size": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_the_products_of_all_ranks_are_the_operations_of_a_step(benchmarks: Any, model: str, layout: str) -> None:
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, **LAYOUTS[layout]}
    config = TransformerConfig.from_dict(
        {
            "topology": {"gradient_accumulation_steps": 1, "global_batch_size": 16, **sizes},
            "transformer_architecture": {
                **{"vocab_size": 64, "hidden_size": 32, "num_layers": 4, "num_attention_heads": 4},
                **{"sequence_length": 16, **MODELS[model]},
            },
        },
        quiet=True,
    )
    roofline = benchmarks("roofline")
    counts = roofline.products_of(plan_of(config.transformer_architecture), config.topology, causal=False)
    operations = sum(product.operations * count for product, count in counts.items()) * config.topology.world_size
    assert operations == flops_per_token(config.transformer_architecture) * 16 * 16
    halved = roofline.products_of(plan_of(config.transformer_architecture), config.topology, causal=True)
    scores = plan_of(config.transformer_architecture).multiply_adds.scores
    operations -= sum(product.operations * count for product, count in halved.items()) * config.topology.world_size
    assert operations == 6 * scores / 2 * 16 * 16


def test_products_run_as_often_as_they_come(benchmarks: Any) -> None:
    roofline = benchmarks("roofline")
    runs = {"often": 0, "seldom": 0}

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def made(self, dtype: object, device: object) -> Any:
            def run() -> None:
                runs[self.name] += 1

            return run

    class Cpu:
        type = "cpu"

    step = roofline.only_products({Counted("often"): 3, Counted("seldom"): 0.5}, None, Cpu())
    for _ in range(10):
        step()
    assert runs == {"often": 30, "seldom": 5}


def test_every_moment_counts_for_the_innermost_part(benchmarks: Any) -> None:
    times = iter([0.0, 1.0, 3.0, 4.0, 8.0, 9.0])
    clock = benchmarks("clock").Clock(lambda: next(times))
    with clock.within("rest"):  # from 1
        with clock.within("backward"):  # from 3
            clock.change("loss")  # from 4 to 8
        assert clock.innermost == "rest"  # until 9
    assert clock.seconds == {"rest": 3.0, "backward": 1.0, "loss": 4.0}
    assert sum(clock.seconds.values()) == sum(end - start for _, start, end in clock.spans) == 8.0


def test_a_pass_is_predicted_from_the_times_of_the_stages(benchmarks: Any) -> None:
    shape = {"ranks": 2, "micro_batches": 4, "schedule": "1f1b", "chunks": 1}
    first = {"stage_seconds": {"Forward 0": 1.0, "Backward 0": 2.0}, "seconds_per_pass": 16.0, "pipeline": shape}
    last = {"stage_seconds": {"Forward 1": 1.0, "Backward 1": 2.0}, "seconds_per_pass": 20.0, "pipeline": shape}
    found = benchmarks("budget").prediction([first, last])
    assert found["predicted_seconds_per_pass"] == (4 + 2 - 1) * 3.0  # micro-batches and stages that are filled
    assert found["fraction_of_prediction"] == 15.0 / 20.0


def test_what_is_exposed_is_what_the_last_rank_to_come_waits(benchmarks: Any) -> None:
    ranks = [
        {"seconds_per_step": 1.0, "parts": {"communication": waited}, "collectives_alone": 0.5} for waited in (0.3, 0.1)
    ]
    assert benchmarks("budget").summary(ranks)["collectives"]["hidden"] == pytest.approx(0.8)
