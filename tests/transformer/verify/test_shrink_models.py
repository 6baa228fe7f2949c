"""Published models, and a model of each family, keep their structure when they become small enough to verify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from scaling.transformer import TransformerConfig
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.presets import PRESETS
from scaling.transformer.hf.choose import family_of
from scaling.transformer.plan.attention import AttentionPlan, RotationPlan
from scaling.transformer.verify.shrink import shrunk
from tests.transformer.hf.in_memory import config_json
from tests.transformer.hf.tiny_models import FAMILIES

SIZES = frozenset(
    {
        *("hidden_size", "num_layers", "num_attention_heads", "attention_num_kv_heads", "attention_head_size"),
        *("mlp_factor", "mlp_size", "vocab_size", "sequence_length", "absolute_positions", "rotary_percentage"),
        *("rotary", "attention_kinds", "attention_pattern"),
    }
)
"""What may become smaller, or has sizes in it. Everything else is structure."""


def section_of(name: str) -> Mapping[str, Any]:
    """Return the section of a preset or of a family's tiny model."""
    if name in PRESETS:
        return PRESETS[name]
    config = config_json(name)
    return family_of(config).section(config)


def in_many_processes(section: Mapping[str, Any]) -> TransformerConfig:
    """Return a training on two ranks along each axis, three or five on the model axis where heads ask for that."""
    heads = section["num_attention_heads"]
    ranks = next(n for n in (2, 3, 5) if heads % n == 0 and (section.get("attention_num_kv_heads") or heads) % n == 0)
    length = section["sequence_length"] // ranks * ranks
    layout = {"pipe_parallel_size": 2, "data_parallel_size": 2, "model_parallel_size": ranks}
    batch = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}
    return TransformerConfig.from_dict(
        {
            "topology": {**layout, **batch, "sequence_parallel": True},
            "transformer_architecture": {**section, "sequence_length": length},
            "data": {"eod_token_id": 0},
        },
        quiet=True,
    )


def kinds(architecture: TransformerArchitectureConfig) -> set[tuple[object, ...]]:
    """Return what tells the kinds of attention layers apart, sizes aside."""
    parts, length = plan_of(architecture).parts(AttentionPlan), architecture.sequence_length
    return {
        (part.window is not None and part.window < length, *rotation(part.rotation, part.head_size)) for part in parts
    }


def rotation(plan: RotationPlan | None, head_size: int) -> tuple[object, ...]:
    """Return how positions are turned, whether in a part of a head, and whether beyond the length of a training."""
    if plan is None:
        return ()
    trained = getattr(plan.scaling, "trained_length", None)
    return type(plan.scaling), plan.base, plan.dimensions < head_size, trained is not None and plan.length > trained


@pytest.mark.parametrize("name", [*PRESETS, *FAMILIES])
def test_a_model_keeps_its_structure(name: str) -> None:
    large = in_many_processes(section_of(name))
    small = shrunk(large)
    before, after = large.transformer_architecture, small.transformer_architecture
    sizes = small.topology
    assert (sizes.pipe_parallel_size, sizes.data_parallel_size, sizes.model_parallel_size) == (2, 2, 2)
    assert sizes.sequence_parallel
    assert after.hidden_size <= 64
    assert after.num_layers <= 4
    assert after.sequence_length == 16
    assert kinds(after) == kinds(before)
    assert (after.head_size * after.num_attention_heads == after.hidden_size) == (
        before.head_size * before.num_attention_heads == before.hidden_size
    )
    assert after.mlp_width / after.hidden_size == pytest.approx(before.mlp_width / before.hidden_size, rel=0.05)
    given, left = before.as_dict(), after.as_dict()
    assert {key: left[key] for key in given.keys() - SIZES} == {key: given[key] for key in given.keys() - SIZES}
    assert {key for key in SIZES if left[key] is None} == {key for key in SIZES if given[key] is None}
    assert shrunk(small) == small
