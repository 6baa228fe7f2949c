"""Which layers of a plan are in 8 bits: told by recipe, found with their recipes, and built with their product."""

from __future__ import annotations

from typing import Any

import pytest

from scaling.core import ConfigError, Float8Product, Float8Recipe, ParallelMLP, ParallelSelfAttention, Topology
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.environment import float8_has_its_package
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.layers.kernels import told_of_kernels
from scaling.transformer.layers.parts import PartMaker
from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.parts import FeedForwardPlan

BY_ROWS = {"granularity": "row", "dtypes_grad_weight": None}


def architecture(**sections: Any) -> TransformerArchitectureConfig:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_layers": 1, "vocab_size": 9, "mlp_factor": 1.5}
    return TransformerArchitectureConfig.from_dict({**sizes, **sections})


def test_each_section_is_for_its_layers() -> None:
    found = architecture(fp8_config_attention={}, fp8_config_mlp_dense_out=BY_ROWS)
    plan, tensor = plan_of(found), Float8Recipe()
    row = Float8Recipe(per_row=True, grad_weight=None)
    parts: list[Any] = [*plan.parts(AttentionPlan), *plan.parts(FeedForwardPlan)]
    linears = {linear.name: recipe for linear, recipe in plan.arithmetic.float8.linears(parts)}
    assert linears == {"query": tensor, "key": tensor, "value": tensor, "dense_out": row}
    make = PartMaker(plan, Topology.single(), seed=1)
    attention, mlp = make(parts[0], 1), make(parts[1], 1)
    assert isinstance(attention, ParallelSelfAttention)
    assert isinstance(mlp, ParallelMLP)
    products = {
        name: layer.product.recipe
        for name, layer in [*attention.named_modules(), *mlp.named_modules()]
        if isinstance(getattr(layer, "product", None), Float8Product)
    }
    fused = "query_key_value" in dict(attention.named_modules())
    assert products == ({"query_key_value": tensor, "dense_out": row} if fused else linears)
    assert plan_of(found.without_float8()).arithmetic.float8.recipes == []


def test_what_multiplies_is_told() -> None:
    plan = plan_of(architecture(fp8_config_attention={}, fp8_config_mlp=BY_ROWS, fp8_config_mlp_dense_out=BY_ROWS))
    line = told_of_kernels(plan, "cpu", [])
    assert line == (
        "kernels: attention scaled-dot-product (PyTorch); linear layers float8 scaled per tensor: query, key, value; "
        "float8 scaled per row, but for the weight gradient: MLP in, MLP out (emulated, which is slow); others float32"
    )
    assert "(torchao)" in told_of_kernels(plan, "cuda", [])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_gpu_needs_torchao_or_is_refused_when_the_configuration_is_checked(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "topology": {"device": "cuda"},
        "transformer_architecture": {"fp8_config_mlp": {}, "precision": precision, "hidden_size": 64},
    }
    config = TransformerConfig.from_dict(settings)
    for has, half in ((None, "need the package torchao"), (object(), "belong to a model in bfloat16")):
        monkeypatch.setattr("scaling.transformer.config.environment.find_spec", lambda _, has=has: has)
        found = [str(problem) for problem in float8_has_its_package(config.transformer_architecture, config.topology)]
        expected = has is None or precision == "float16"
        assert len(found) == expected
        assert not expected or (found[0].startswith("transformer_architecture.fp8_config_mlp: ") and half in found[0])


def test_a_device_that_cannot_do_it_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaling.transformer.layers.parts.find_float8_obstacle", lambda *_: "it is old; remove it")
    with pytest.raises(ConfigError, match="transformer_architecture has an fp8_config, but it is old; remove it"):
        PartMaker(plan_of(architecture(fp8_config_attention={})), Topology.single(), seed=1)
