"""Statistics of a language model are those of one process in every layout, up to rounding, and change no bit of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.transformer.small import build_corpus, layout, metrics, train_small

SETTINGS: Mapping[str, Any] = {
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
CUT = {"topology.sequence_parallel": True}


def assert_same(cut: Mapping[str, float], alone: Mapping[str, float]) -> None:
    """Compare the numbers of two runs: those of the first weights bit by bit, all else up to rounding."""
    names = [name for name in alone if name.startswith("statistics/")]
    assert names == [name for name in cut if name.startswith("statistics/")]
    for name in names:
        tensor, _, statistic = name.rpartition("/")
        if statistic == "count" or (statistic in ("max", "min") and "/parameters/" in name):
            assert cut[name] == alone[name], name
        else:
            # A mean is a sum of terms far larger than itself: it is as exact as the largest of these.
            scale = max(abs(alone[f"{tensor}/max"]), abs(alone[f"{tensor}/min"]))
            assert cut[name] == pytest.approx(alone[name], rel=1e-11, abs=1e-12 * scale), name


def test_a_model_with_shared_heads_and_a_cut_sequence_has_the_same_statistics(tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path / "corpus")
    [alone] = train_small(corpus, tmp_path / "alone", SETTINGS)
    [cut] = train_small(corpus, tmp_path / "cut", SETTINGS, layout(2, 2, 2), CUT)
    kinds = {name.split("/")[1] for name in alone if name.startswith("statistics/")}
    assert kinds == {"parameters", "parameter_gradients", "activations", "activation_gradients"}
    assert "statistics/activation_gradients/layers.1.self_attention.norm_key/max" in alone
    assert_same(cut, alone)


def test_recording_changes_no_bit_and_stands_beside_the_other_numbers_of_its_step(tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path / "corpus")
    recorder = {"interval": 2, "statistics": [["parameters/*embedding*", ["rms"]], ["*", ["mean"]]]}
    for name, setting in (("with", recorder), ("without", None)):
        settings = {"trainer.tensor_statistics_recorder_config": setting, "trainer.train_iterations": 4}
        train_small(corpus, tmp_path / name, settings, {"topology.activation_checkpointing_type": "selective"})
    recorded, plain = metrics(tmp_path / "with"), metrics(tmp_path / "without")
    assert [line["training/loss"] for line in recorded] == [line["training/loss"] for line in plain]
    name = "statistics/parameters/layers.0.embedding.weight/rms"
    assert [name in line for line in recorded] == [False, True, False, True]
    assert recorded[1][name] > 0
