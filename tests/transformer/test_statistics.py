"""Statistics of a language model are those of one process in every layout, up to rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.transformer.small import build_corpus, layout, train_small

SETTINGS = {
    "transformer_architecture.precision": "float64",
    "transformer_architecture.attention_num_kv_heads": 1,
    "transformer_architecture.key_query_norm": "per_head",
    "transformer_architecture.num_layers": 1,
    "topology.activation_checkpointing_type": "every_layer",
    "trainer.train_iterations": 1,
    "trainer.tensor_statistics_recorder_config": {
        "interval": 1,
        "statistics": [["*", ["count", "mean", "l1", "std", "max", "min"]]],
    },
}


def test_a_model_with_shared_heads_and_a_cut_sequence_has_the_same_statistics(tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path / "corpus")
    [alone] = train_small(corpus, tmp_path / "alone", SETTINGS)
    [cut] = train_small(corpus, tmp_path / "cut", SETTINGS, layout(2, 2, 2), {"topology.sequence_parallel": True})
    names = [name for name in alone if name.startswith("statistics/")]
    assert names == [name for name in cut if name.startswith("statistics/")]
    kinds = {name.split("/")[1] for name in names}
    assert kinds == {"parameters", "parameter_gradients", "activations", "activation_gradients"}
    assert "statistics/activation_gradients/layers.1.self_attention.norm_key/max" in names
    largest = {name.rpartition("/")[0]: alone[f"{name.rpartition('/')[0]}/max"] for name in names}
    for name in names:
        if name.endswith(("/count", "/max", "/min")) and "/parameters/" in name:
            assert cut[name] == alone[name], name
        else:
            # A mean is a sum of terms far larger than itself: it is as exact as the largest of these.
            scale = abs(largest[name.rpartition("/")[0]])
            assert cut[name] == pytest.approx(alone[name], rel=1e-11, abs=1e-12 * scale), name


def test_statistics_stand_in_metrics_jsonl_beside_the_other_numbers_of_their_step(tmp_path: Path) -> None:
    recorder = {"interval": 2, "statistics": [["parameters/*embedding*", ["rms"]]]}
    settings = {"trainer.tensor_statistics_recorder_config": recorder, "trainer.train_iterations": 3}
    train_small(build_corpus(tmp_path / "corpus"), tmp_path / "run", settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    name = "statistics/parameters/layers.0.embedding.weight/rms"
    assert [name in line for line in lines] == [False, True, False]
    assert lines[1][name] > 0
    assert "training/loss" in lines[1]
