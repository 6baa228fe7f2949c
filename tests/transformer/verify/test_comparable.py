"""Layouts of a comparable configuration are not parted by gradients that are nothing but rounding."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core import AdamWConfig, verify_layout
from scaling.transformer import TransformerConfig
from scaling.transformer.recipe import recipe_of
from scaling.transformer.verify.comparable import FLOAT8_TOLERANCE, comparable, tolerance_of
from scaling.transformer.verify.synthetic import synthetic_text

SIZES = {"model_parallel_size": 2, "pipe_parallel_size": 1, "data_parallel_size": 1}
# Without positions the softmax does not feel the bias of the keys: its gradient is rounding alone.
MODEL = {"vocab_size": 49, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "sequence_length": 16}


@pytest.mark.parametrize(("precision", "rate"), [("float64", 0.1), ("float32", 0.003)])
def test_gradients_that_are_nothing_but_rounding_do_not_part_layouts(precision: str, rate: float) -> None:
    sections = {
        "topology": {**SIZES, "micro_batch_size": 2, "gradient_accumulation_steps": 2},
        "transformer_architecture": {**MODEL, "relative_position_embedding_type": "none", "precision": precision},
        "learning_rate_scheduler": {"learning_rate": rate, "learning_rate_warmup_steps": 1000},
    }
    config = comparable(TransformerConfig.from_dict(sections))
    recipe = recipe_of(config, synthetic_text(config))
    report = verify_layout(recipe, config.topology, steps=2, precision=precision, timeout=60.0)
    assert report.agrees, report


def test_a_larger_eps_stays() -> None:
    assert comparable(TransformerConfig.from_dict({"optimizer": {"eps": 0.01}})).optimizer == AdamWConfig(eps=0.01)


@pytest.mark.parametrize(
    ("section", "tolerance"),
    [
        (None, None),
        ({"granularity": "row", "dtypes_grad_weight": None}, None),
        ({"granularity": "row"}, FLOAT8_TOLERANCE),
        ({"dtypes_grad_weight": None}, FLOAT8_TOLERANCE),
    ],
)
def test_scales_over_a_micro_batch_may_part_layouts_by_their_rounding(
    section: dict[str, Any] | None, tolerance: float | None
) -> None:
    config = TransformerConfig.from_dict(
        {"transformer_architecture": {"fp8_config_mlp": section, "hidden_size": 64, "sequence_length": 16}}
    )
    assert tolerance_of(config, "float64") == tolerance
    assert tolerance_of(config, "float32") is None
