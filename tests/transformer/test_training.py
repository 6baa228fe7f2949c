"""Every layout trains the same model: losses, gradient norms and evaluations do not depend on how it is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from tests.transformer.small import (
    BATCH,
    LAYOUTS,
    SEQUENCE,
    build_corpus,
    layout,
    metrics,
    nested,
    settings_of,
    state,
    train_small,
    values,
)

COMPARED = ("training/loss", "training/global_grad_norm", "evaluation/loss", "evaluation/perplexity")
INTERLEAVED = {"topology.pipe_schedule": "interleaved_1f1b", "topology.pipe_chunks_per_rank": 2}
SEQUENCE_PARALLEL = {"topology.sequence_parallel": True}
ZERO = {"optimizer.zero": True}
RECOMPUTED = {"topology.activation_checkpointing_type": "every_layer"}
RECOMPUTED_STAGES = {"topology.activation_checkpointing_type": "every_pipe_stage"}
ANOTHER_MODEL = {
    "transformer_architecture.attention_num_kv_heads": None,
    "transformer_architecture.mlp_type": "default",
    "transformer_architecture.norm_type": "layernorm",
    "transformer_architecture.weight_tying": False,
    "transformer_architecture.key_query_norm": True,
    "transformer_architecture.relative_position_embedding_type": "rotary_complex",
}
DROPOUT = {
    f"transformer_architecture.dropout_{place}": 0.1
    for place in ("embedding", "attention_probs", "after_attention", "after_mlp")
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build_corpus(folder / "validation", documents=9, seed=1)
    return build_corpus(folder / "training")


@pytest.fixture(scope="module")
def evaluation(data: Path) -> dict[str, Any]:
    """Evaluate twice."""
    return {"data.validation_data_prefixes": [str(data.with_name("validation"))], "trainer.eval_interval": 5}


@pytest.fixture(scope="module")
def alone(data: Path, evaluation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process comes to."""
    return train_small(data, tmp_path_factory.mktemp("alone"), evaluation)


def assert_alike(lines: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in reference]
    for name in COMPARED:
        assert values(lines, name) == pytest.approx(values(reference, name), rel=1e-5), name


@pytest.mark.parametrize("sizes", LAYOUTS[1:], ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_layout_trains_like_one_process(
    data: Path, evaluation: dict[str, Any], alone: list[dict[str, Any]], tmp_path: Path, sizes: tuple[int, int, int]
) -> None:
    assert_alike(train_small(data, tmp_path, layout(*sizes), evaluation), alone)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param((2, 1, 1), ZERO, id="zero", marks=pytest.mark.slow),
        pytest.param((1, 1, 2), SEQUENCE_PARALLEL, id="sequence-parallel", marks=pytest.mark.slow),
        pytest.param((1, 2, 1), {**INTERLEAVED, **RECOMPUTED}, id="interleaved-recomputed", marks=pytest.mark.slow),
        pytest.param((1, 2, 1), {"topology.pipe_schedule": "gpipe", **RECOMPUTED_STAGES}, id="gpipe-stages-recomputed"),
        pytest.param((2, 2, 2), {**ZERO, **INTERLEAVED, **SEQUENCE_PARALLEL, **RECOMPUTED}, id="all"),
    ],
)
def test_savings_of_memory_and_time_change_no_number(
    data: Path,
    evaluation: dict[str, Any],
    alone: list[dict[str, Any]],
    tmp_path: Path,
    sizes: tuple[int, int, int],
    options: Mapping[str, Any],
) -> None:
    assert_alike(train_small(data, tmp_path, layout(*sizes), evaluation, options), alone)


@pytest.mark.parametrize("model", [ANOTHER_MODEL, DROPOUT], ids=["another-model", "dropout"])
def test_other_models_train_alike_too(data: Path, tmp_path: Path, model: Mapping[str, Any]) -> None:
    # In float32 AdamW turns rounding of gradients near zero into whole steps, in different ways.
    steps = {"trainer.train_iterations": 4, "transformer_architecture.precision": "float64"}
    everything = {**layout(1, 2, 2), **SEQUENCE_PARALLEL, **RECOMPUTED}
    whole = train_small(data, tmp_path / "whole", model, steps)
    assert_alike(train_small(data, tmp_path / "cut", model, steps, everything), whole)


def test_the_same_run_gives_the_same_bits(
    data: Path, evaluation: dict[str, Any], alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    again = train_small(data, tmp_path, evaluation)
    for name in COMPARED:
        assert values(again, name) == values(alone, name)


def test_the_validation_set_does_not_fill_its_last_batch(data: Path, evaluation: dict[str, Any]) -> None:
    config = TransformerConfig.from_dict(nested(settings_of(data, data.parent / "unused", evaluation)))
    _, validation = load_datasets(prepare_data(config))
    assert validation is not None
    assert len(validation) > BATCH
    assert len(validation) % BATCH


def test_the_model_learns_and_the_run_says_what_it_did(data: Path, tmp_path: Path) -> None:
    lines = train_small(data, tmp_path, {"trainer.train_iterations": 30, "trainer.log_interval": 7})
    assert lines[0]["training/loss"] == pytest.approx(4.2, abs=0.3)  # ln(67)
    assert lines[-1]["training/loss"] < 3.3
    assert [line["step"] for line in lines] == list(range(1, 31))
    last = lines[-1]
    assert last["training/consumed_samples"] == 30 * BATCH
    assert last["training/consumed_tokens"] == 30 * BATCH * SEQUENCE
    assert last["training/learning_rate_all"] == 0.02
    for name in ("step_duration", "tokens_per_second", "peak_memory_bytes"):
        assert len(values(lines, f"training/{name}")) == 5  # steps 7, 14, 21, 28 and the last
        assert last[f"training/{name}"] > 0
    assert (state(tmp_path)["state"], state(tmp_path)["step"]) == ("finished", 30)
    resolved = TransformerConfig.from_yaml(tmp_path / "config.yml")
    assert resolved.trainer.train_iterations == 30
    assert len(json.loads((tmp_path / "run.json").read_text())) > 3
    assert metrics(tmp_path) == lines
