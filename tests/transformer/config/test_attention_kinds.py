"""Rotations in the configuration: what null stands for, and what follows the sequence length."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core import DynamicScaling, LongRopeScaling, RotaryScaling
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.plan.attention import AttentionPlan

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}


def rotation(architecture: TransformerArchitectureConfig) -> tuple[RotaryScaling | None, int]:
    (attention,) = plan_of(architecture).parts(AttentionPlan)
    if attention.rotation is None:
        return None, architecture.sequence_length
    return attention.rotation.scaling, attention.rotation.length


@pytest.mark.parametrize(
    "rotary",
    [
        {"type": "default"},
        {"type": "none"},
        {"type": "linear", "factor": 2},
        {"type": "dynamic", "factor": 2},
        {"type": "yarn", "factor": 2},
        {"type": "yarn", "factor": 2, "trained_length": 100},
        {"type": "llama3", "factor": 8},
        LONGROPE,
        {**LONGROPE, "trained_length": 512},
        {**LONGROPE, "trained_length": 512, "factor": 3},
    ],
    ids=lambda rotary: " ".join(f"{key}={value}" for key, value in rotary.items() if "_factor" not in key),
)
@pytest.mark.parametrize("by_kind", [False, True])
def test_at_another_length_a_model_is_stretched_as_before(rotary: dict[str, Any], by_kind: bool) -> None:
    section: dict[str, Any] = {"rotary": rotary, "sequence_length": 2048}
    if by_kind:
        section = {"attention_kinds": {"a": {"rotary": rotary}}, "attention_pattern": ["a"], "sequence_length": 2048}
    architecture = TransformerArchitectureConfig.from_dict(section)
    before, after = rotation(architecture), rotation(architecture.at_length(128))
    if isinstance(before[0], LongRopeScaling):
        assert isinstance(after[0], LongRopeScaling)
        assert after[0].factor == (before[0].factor or 2048 / before[0].trained_length)
        assert after[0].trained_length == before[0].trained_length
    else:
        assert after[0] == before[0]
    assert after[1] == 128


def test_what_null_stands_for_is_the_sequence_length() -> None:
    architecture = TransformerArchitectureConfig.from_dict({"rotary": {"type": "dynamic", "factor": 2}})
    assert rotation(architecture) == (DynamicScaling(factor=2.0, trained_length=2048), 2048)
