"""The kernel of each layer of a plan: told in a line, and refused before anything is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scaling.core import AttentionKernel, Scores
from scaling.transformer.layers.kernels import choices, needs_of, scores_of, told
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import Arithmetic, ModelPlan
from tests.transformer.plan.toy_family import SETTINGS, plan_of_toy

HALF = Arithmetic(precision="bfloat16", kernel="flash_attention")


def plan(*kinds: tuple[int, dict[str, Any]], arithmetic: Arithmetic = HALF) -> ModelPlan:
    """Return a model with runs of layers whose attention has some fields changed."""
    first, (_, block), *last = plan_of_toy(SETTINGS).runs
    runs = []
    for count, changes in kinds:
        parts = [
            (name, replace(part, **changes) if isinstance(part, AttentionPlan) else part) for name, part in block.parts
        ]
        runs.append((count, replace(block, parts=tuple(parts))))
    return ModelPlan((first, *runs, *last), sequence=12, arithmetic=arithmetic)


def test_scores_are_those_of_the_plan() -> None:
    changes: dict[str, Any] = {"scale": 0.25, "causal": True, "window": 4, "cap": 9.0, "windowed_heads": 3}
    (part,) = plan((1, changes)).parts(AttentionPlan)
    assert scores_of(part) == Scores(**changes)
    (part,) = plan((1, {"causal": False, "scale": 0.5})).parts(AttentionPlan)
    assert scores_of(part) == Scores(scale=0.5, causal=False)


@pytest.mark.parametrize(("kv_heads", "grouped"), [(4, False), (2, True)])
def test_needs_are_those_of_the_layer_in_packed_rows(kv_heads: int, grouped: bool) -> None:
    (part,) = plan((1, {"window": 4, "kv_heads": kv_heads})).parts(AttentionPlan)
    needs = needs_of(part, "float16", "cuda", dropout=True)
    assert needs.features - {"grouped heads"} == {"causal", "packed rows", "a window", "dropout"}
    assert ("grouped heads" in needs.features) == grouped
    assert (needs.head_size, needs.dtype, needs.device) == (10, "float16", "cuda")


@pytest.mark.parametrize(
    ("kinds", "device", "found", "line"),
    [
        ([(3, {})], "cpu", [], "scaled-dot-product (PyTorch)"),
        ([(3, {"window": 4})], "cpu", [], "scaled-dot-product (PyTorch)"),
        ([(3, {"cap": 5.0})], "cpu", [], "spelled-out"),
        (
            [(3, {"dropout": 0.1})],
            "cpu",
            [],
            "spelled-out while probabilities are dropped, else scaled-dot-product (PyTorch)",
        ),
        (
            [(2, {"window": 4, "head_size": 16}), (1, {"cap": 5.0, "head_size": 16}), (2, {"head_size": 16})],
            "cuda",
            [AttentionKernel.VARIABLE_LENGTH, AttentionKernel.FLEX],
            "varlen (PyTorch) in 4 layers, flex (PyTorch) in 1 layer",
        ),
        ([(2, {})], "cuda", [AttentionKernel.FLASH_ATTN], "flash-attn"),
    ],
)
def test_the_choice_is_told_in_a_line(
    kinds: list[tuple[int, dict[str, Any]]], device: str, found: list[AttentionKernel], line: str
) -> None:
    assert told(plan(*kinds), device, found) == line


def test_only_flash_attention_asks_for_fused_kernels() -> None:
    ours = plan((1, {}), arithmetic=Arithmetic(precision="bfloat16"))
    (choice,) = choices(ours, "cuda", list(AttentionKernel)).values()
    assert choice.training is choice.otherwise is AttentionKernel.SCALED_DOT_PRODUCT
