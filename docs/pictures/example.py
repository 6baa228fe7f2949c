"""The models whose numbers the pictures show: that of examples/transformer_example, and a published one."""

from __future__ import annotations

from pathlib import Path

from scaling.transformer import TransformerConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.presets import preset
from scaling.transformer.plan.model import ModelPlan

CONFIG = Path(__file__).parents[2] / "examples" / "transformer_example" / "config.yml"


def example_plan() -> ModelPlan:
    """Return the plan of the example's model."""
    return plan_of(TransformerConfig.from_yaml(CONFIG, quiet=True).transformer_architecture)


def published_plan(name: str, *, sequence: int) -> ModelPlan:
    """Return the plan of a preset for sequences of so many tokens."""
    return plan_of(
        TransformerConfig.from_dict(
            {"transformer_architecture": {**preset(name), "sequence_length": sequence}}, quiet=True
        ).transformer_architecture
    )
