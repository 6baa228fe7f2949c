"""A family that this library has never heard of: one file brings its plan and the order of its blocks, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core import ConfigError, ParallelModule, Recipe, Topology, TopologyConfig, verify_layout
from scaling.transformer.data.batch import TextCollator
from scaling.transformer.io import TextInputs
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import specs_of
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import ModelPlan
from scaling.transformer.plan.parts import FeedForwardPlan, NormPlan
from scaling.transformer.verify.synthetic import SyntheticText
from tests.reference.dense import affine, attend, rms_norm, rotate, swiglu
from tests.reference.worlds import topology_config
from tests.transformer.plan.test_parameters import assert_planned_as_built
from tests.transformer.plan.toy_family import SETTINGS, TOY_LAYERS, plan_of_toy, toy_layers

Kind = type[AttentionPlan] | type[FeedForwardPlan] | type[NormPlan]

OTHER_SCORES: Mapping[str, Any] = {"window": 5, "score_cap": 1.5, "n_window_heads": 3}

VOCABULARY, CONTEXT = SETTINGS["n_vocab"], SETTINGS["n_context"]


def loss_of_tokens(topology: Topology) -> CrossEntropyLoss:
    return CrossEntropyLoss()


def dense_logits(weights: dict[str, Tensor], tokens_BS: Tensor, scores: Mapping[str, Any]) -> Tensor:
    """Return the logits of whole weights, as the family's authors might have written them down."""
    size, epsilon = SETTINGS["head_dim"], SETTINGS["rms_eps"]
    positions = torch.arange(tokens_BS.shape[1]).expand(tokens_BS.shape)
    x = weights["layers.0.embedding.weight"][tokens_BS]
    last = SETTINGS["n_layers"]
    for layer in range(1, last + 1):
        own = {name.removeprefix(f"layers.{layer}."): value for name, value in weights.items()}
        q, k, v = (
            affine(own, f"self_attention.{name}", x).unflatten(-1, (-1, size)) for name in ("query", "key", "value")
        )
        q, k = (rotate(t, positions, size, base=SETTINGS["rope_theta"]) for t in (q, k))
        k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
        windowed = scores.get("n_window_heads", q.shape[2])
        heads = [
            attend(
                *(t[:, :, [head]] for t in (q, k, v)),
                scale=size**-0.5,
                causal=True,
                window=scores.get("window") if head < windowed else None,
                cap=scores.get("score_cap"),
            )
            for head in range(q.shape[2])
        ]
        attended = affine(own, "self_attention.dense", torch.cat(heads, dim=2).flatten(2))
        x = x + rms_norm(attended, own["post_attention_layernorm.weight"], epsilon)
        mlp = {name.removeprefix("mlp."): value for name, value in own.items()}
        x = x + rms_norm(swiglu(mlp, x), own["post_feedforward_layernorm.weight"], epsilon)
    return (
        rms_norm(x, weights[f"layers.{last + 1}.norm.weight"], epsilon) @ weights[f"layers.{last + 2}.linear.weight"].T
    )


@pytest.mark.parametrize("scores", [{}, OTHER_SCORES], ids=["plain", "windowed and capped"])
def test_the_plan_of_a_family_is_built_and_computes_what_it_should(scores: Mapping[str, Any]) -> None:
    topology = Topology.single()
    module = ParallelModule(toy_layers({**SETTINGS, **scores}, topology), topology, TopologyConfig(), seed=3)
    (stage,) = module.stages.values()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():  # norms and biases too: what is constant hides mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    weights = {tensor.key: tensor.parts[0][1] for tensor in module.global_tensors()}
    tokens = torch.randint(VOCABULARY, (2, CONTEXT), generator=generator)
    positions = torch.arange(CONTEXT).expand(2, CONTEXT)
    with torch.no_grad():
        logits = stage(TextInputs(tokens, positions, None, torch.arange(2))).logits()
    torch.testing.assert_close(logits, dense_logits(weights, tokens, scores), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [{"model": 2, "sequence_parallel": True}, {"model": 4}, {"pipe": 3, "model": 2}])
def test_its_parameters_are_those_of_its_plan_in_every_layout(sizes: dict[str, int]) -> None:
    assert_planned_as_built(plan_of_toy(SETTINGS), topology_config(**sizes), TOY_LAYERS)


def test_it_trains_a_step_alike_in_two_layouts() -> None:
    """One rank has heads with a window only, the other has both kinds."""
    recipe = Recipe(
        layers=partial(toy_layers, {**SETTINGS, **OTHER_SCORES}),
        loss=loss_of_tokens,
        training=SyntheticText(100, CONTEXT, TextCollator(VOCABULARY)),
        usual_weight=4.0 * CONTEXT,
    )
    layout = topology_config(model=2, pipe=2, global_batch_size=4, micro_batch_size=1)
    report = verify_layout(recipe, layout, steps=1, timeout=60.0)
    assert report.agrees, report


def changed(plan: ModelPlan, kind: Kind, **changes: Any) -> ModelPlan:
    """Return the plan with other fields in all parts of a kind."""
    runs = []
    for count, layer in plan.runs:
        parts = [(name, replace(part, **changes) if isinstance(part, kind) else part) for name, part in layer.parts]
        runs.append((count, replace(layer, parts=tuple(parts))))
    return replace(plan, runs=tuple(runs))


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (NormPlan, {"bias": True}, "an RMSNorm with a bias"),
        (
            FeedForwardPlan,
            {"activation": "tanh"},
            r"the activation tanh \(there is gelu, gelu_tanh, relu, squared_relu, silu\)",
        ),
    ],
)
def test_what_a_plan_can_say_and_nothing_can_build_is_refused_by_name(
    kind: Kind, changes: dict[str, Any], said: str
) -> None:
    plan = changed(plan_of_toy(SETTINGS), kind, **changes)
    with pytest.raises(ConfigError, match=f"this version cannot build {said}; remove it from the model"):
        specs_of(plan, Topology.single(), seed=0, layers=TOY_LAYERS)


def test_an_order_of_blocks_that_nobody_brings_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="this version cannot build layers of the kind post_branch_norm"):
        specs_of(plan_of_toy(SETTINGS), Topology.single(), seed=0)
