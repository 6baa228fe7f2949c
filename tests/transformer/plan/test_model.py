"""What a plan says of a model as a whole, also where its layers differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.blocks import BlockParts, pre
from scaling.transformer.plan.model import Divisors, ModelPlan
from scaling.transformer.plan.parts import FeedForwardPlan, NormPlan, ResidualPlan


def plan(**changes: Any) -> ModelPlan:
    sizes = {"vocab_size": 50, "hidden_size": 48, "num_layers": 3, "num_attention_heads": 12, "sequence_length": 16}
    return plan_of(TransformerArchitectureConfig.from_dict({**sizes, **changes}))


def alternating() -> ModelPlan:
    """Return a model whose second block has fewer heads, a wider feed-forward and a window."""
    first, _, *last = plan().runs
    (norm,), (attention,), (feed_forward,) = (plan().parts(kind) for kind in (NormPlan, AttentionPlan, FeedForwardPlan))
    assert isinstance(norm, NormPlan)
    assert isinstance(attention, AttentionPlan)
    assert isinstance(feed_forward, FeedForwardPlan)
    other = replace(attention, heads=8, kv_heads=2, fused=False, window=4)
    added = {"add_attention": ResidualPlan("after_attention"), "add_mlp": ResidualPlan("after_mlp")}
    wide = replace(feed_forward, width=200)
    blocks = (
        (2, pre(BlockParts(norm=norm, attention=attention, feed_forward=feed_forward, **added))),
        (1, pre(BlockParts(norm=norm, attention=other, feed_forward=wide, **added))),
    )
    return replace(plan(), runs=(first, *blocks, *last))


def test_divisors_hold_for_every_layer() -> None:
    assert plan().divisors == Divisors(heads=12, width=192, kv_heads=(12,), sequence=16)
    assert alternating().divisors == Divisors(heads=4, width=8, kv_heads=(2, 12), sequence=16)


def test_layers_that_differ_have_their_own_names_shapes_and_costs() -> None:
    shapes = {parameter.name: parameter.shape for parameter in alternating().parameters()}
    assert shapes["layers.2.self_attention.key.weight"] == (48, 48)
    assert shapes["layers.3.self_attention.key.weight"] == (8, 48)
    assert shapes["layers.3.mlp.dense_in.weight"] == (200, 48)
    _, *blocks, _, head = alternating().costs
    attention, other = 4 * 48 * 48 + 48 * 16, (2 * 32 + 2 * 8) * 48 + 32 * 4
    assert blocks == [attention + 2 * 48 * 192] * 2 + [other + 2 * 48 * 200]
    assert head == 48 * 50
    assert sum(alternating().costs) == alternating().multiply_adds.cost


def test_heads_without_a_window_pay_for_the_whole_sequence() -> None:
    (attention,) = plan().parts(AttentionPlan)
    seen = {
        windowed: replace(attention, window=4, windowed_heads=windowed).multiply_adds(16).scores // (2 * 4)
        for windowed in (None, 0, 5, 12, 20)
    }
    assert seen == {None: 12 * 4, 0: 12 * 16, 5: 5 * 4 + 7 * 16, 12: 12 * 4, 20: 12 * 4}
    assert replace(attention, window=40, windowed_heads=5).multiply_adds(16) == attention.multiply_adds(16)


def test_what_is_shared_is_listed_once_and_goes_by_its_first_name() -> None:
    last = plan().num_layers - 1
    assert [parameter.name for parameter in plan().parameters(range(last, last + 1))] == ["layers.0.embedding.weight"]
    names = [parameter.name for parameter in plan().parameters()]
    assert len(names) == len(set(names))
    own = plan(weight_tying=False).parameters(range(last, last + 1))
    assert [parameter.name for parameter in own] == [f"layers.{last}.linear.weight"]
    biased = plan(lm_head_bias=True).parameters(range(last, last + 1))
    assert [parameter.name for parameter in biased] == ["layers.0.embedding.weight", f"layers.{last}.logit_bias.weight"]


def test_a_model_of_any_depth_is_counted_without_listing_its_layers() -> None:
    deep = plan(num_layers=2**62)
    assert deep.num_layers == 2**62 + 3
    assert deep.multiply_adds.scores == 2**62 * 2 * 48 * 16
    assert deep.divisors == plan().divisors


def test_a_block_drops_activations_behind_its_branches_each_at_a_site_of_its_own() -> None:
    found = plan(dropout_after_attention=0.25, dropout_after_mlp=0.5).parts(ResidualPlan)
    assert {(one.site, one.dropout) for one in found} == {("after_attention", 0.25), ("after_mlp", 0.5)}
