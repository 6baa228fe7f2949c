"""Each order of a block computes its formula, and is planned with the parts that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from scaling.core import Dropout
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.model_plan import plan_of
from scaling.transformer.io import TransformerIO
from scaling.transformer.layers.residual import Residual
from scaling.transformer.model import LAYERS

SCALE = 0.25
ORDERS = ("pre", "post", "sandwich", "after_sum", "parallel", "one_norm_parallel")


class Attending(nn.Linear):
    """A part that takes what attention takes, and attends to nothing else."""

    def forward(self, x: Tensor, *packing: Any) -> Tensor:
        return super().forward(x)


def formulas(parts: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what each order computes, written down from the papers."""
    attention, mlp = parts["self_attention"], parts["mlp"]
    before, after, behind_mlp = (
        parts["input_layernorm"],
        parts["attention_output_layernorm"],
        parts["mlp_output_layernorm"],
    )
    before_mlp = parts["post_attention_layernorm"]

    def pre(x: Tensor) -> Tensor:
        h = x + SCALE * attention(before(x))
        return h + SCALE * mlp(before_mlp(h))

    def post(x: Tensor) -> Tensor:
        h = x + SCALE * after(attention(x))
        return h + SCALE * behind_mlp(mlp(h))

    def sandwich(x: Tensor) -> Tensor:
        h = x + SCALE * after(attention(before(x)))
        return h + SCALE * behind_mlp(mlp(before_mlp(h)))

    def after_sum(x: Tensor) -> Tensor:
        h = after(x + SCALE * attention(x))
        return behind_mlp(h + SCALE * mlp(h))

    def parallel(x: Tensor) -> Tensor:
        return x + SCALE * attention(before(x)) + SCALE * mlp(before_mlp(x))

    def one_norm_parallel(x: Tensor) -> Tensor:
        return x + SCALE * attention(before(x)) + SCALE * mlp(before(x))

    return dict(zip(ORDERS, (pre, post, sandwich, after_sum, parallel, one_norm_parallel), strict=True))


def section_of(order: str) -> dict[str, Any]:
    if order in ("parallel", "one_norm_parallel"):
        return {"parallel_residual": True, "parallel_residual_norms": 1 if order == "one_norm_parallel" else 2}
    return {"norm_placement": order}


def learned(order: str) -> Iterator[str]:
    """Yield the parts of a block of this order that have parameters."""
    plan = plan_of(TransformerArchitectureConfig.from_dict(section_of(order)))
    yield from (name for name, part in plan.runs[1][1].parts if list(part.parameters(name)))


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_computes_the_formula_of_its_order(order: str) -> None:
    torch.manual_seed(0)
    names = (
        *("input_layernorm", "attention_output_layernorm", "post_attention_layernorm", "mlp_output_layernorm"),
        *("self_attention", "mlp"),
    )
    double: dict[str, Any] = {"dtype": torch.float64}
    parts: dict[str, nn.Module] = {
        name: Attending(6, 6, **double)
        if name == "self_attention"
        else nn.Sequential(nn.Linear(6, 6, **double), nn.Tanh())
        for name in names
    }
    added = {name: Residual(Dropout(0.0, seed=0, site=name), scale=SCALE) for name in ("add_attention", "add_mlp")}
    block = LAYERS[order](**{name: parts[name] for name in learned(order)}, **added)
    x, positions = torch.randn(2, 3, 6, **double), torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad():
        out = block(TransformerIO(x, positions, None, positions[:, 0])).activations
        torch.testing.assert_close(out, formulas(parts)[order](x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_is_planned_with_the_parts_that_its_class_names(order: str) -> None:
    layer: Any = LAYERS[order]
    named = {name for name in get_type_hints(layer) if name not in get_type_hints(nn.Module)}
    assert named == {*learned(order), "add_attention", "add_mlp"}


def test_only_norms_behind_the_sums_need_none_behind_the_last_layer() -> None:
    for order in ORDERS:
        plan = plan_of(TransformerArchitectureConfig.from_dict(section_of(order)))
        assert ("norm" in [layer.kind for _, layer in plan.runs]) == (order != "after_sum")
