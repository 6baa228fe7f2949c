"""The needs of merging an adapter: the parts that cannot be merged, and the settings that change. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from scaling.transformer.plan.edits import (
    AddedBiasPlan,
    BottleneckPlan,
    EditPlan,
    LowRankEmbeddingPlan,
    LowRankHeadPlan,
    LowRankLinearPlan,
    SoftPromptPlan,
)
from scaling.transformer.plan.model import LayerPlan, ModelPlan
from scaling.transformer.plan.parts import LogitBiasPlan

SETTINGS: Final = (
    "weight_tying",
    "attention_bias",
    "attention_qkv_bias",
    "attention_dense_bias",
    "mlp_bias",
    "lm_head_bias",
)
"""Settings of the architecture that decide which weights and biases exist to merge into."""


@dataclass(frozen=True)
class MergeNeeds:
    """The obstacles to a merge, and the settings that it changes."""

    impossible: tuple[str, ...]
    """Descriptions of the methods that are not changes of weights."""
    settings: Mapping[str, bool]
    """Settings that the merged model needs: biases that are added, a head that is no longer the embedding's table."""


def merge_needs(plan: ModelPlan) -> MergeNeeds:
    """Return what merging all edits of a model needs."""
    impossible: dict[str, None] = {}
    settings: dict[str, bool] = {}
    for _, layer in plan.runs:
        for edit in layer.edits:
            match edit:
                case BottleneckPlan():
                    impossible["bottleneck adapters (adapter_config), which are layers of their own"] = None
                case SoftPromptPlan():
                    impossible["a soft prompt (softprompt_config), which stands in front of the text"] = None
                case _:
                    settings |= dict(_settings(edit, layer))
    return MergeNeeds(tuple(impossible), settings)


def _settings(edit: EditPlan, layer: LayerPlan) -> Iterator[tuple[str, bool]]:
    match edit:
        case AddedBiasPlan(linear=linear) if not linear.bias:
            yield _bias_of(linear.name), True
        case LowRankLinearPlan(linear=linear, form=form) if form.bias and not linear.bias:
            yield _bias_of(linear.name), True
        case LowRankEmbeddingPlan() | LowRankHeadPlan() if layer.tied:
            yield "weight_tying", False
        case _:
            pass
    has_bias = any(isinstance(part, LogitBiasPlan) for _, part in layer.parts)
    if isinstance(edit, LowRankHeadPlan) and edit.form.bias and not has_bias:
        yield "lm_head_bias", True


def _bias_of(linear: str) -> str:
    if linear in ("query", "key", "value"):
        return "attention_qkv_bias"
    return "attention_dense_bias" if linear == "dense" else "mlp_bias"
