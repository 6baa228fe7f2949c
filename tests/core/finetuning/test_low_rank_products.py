"""The products of a low-rank update: what they give, and along which dimension their results are long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core.finetuning.form import LowRankForm
from scaling.core.finetuning.low_rank import LowRank
from scaling.core.nn.linear import ColumnParallelLinear
from scaling.core.nn.place import Place
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import fill
from tests.reference.worlds import random

TOKENS, IN, OUT, RANK, SCALE = 10, 6, 5, 2, 1.5


class Products(TorchDispatchMode):
    """Writes down the shapes of the results of matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm"):
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_thin_results_lie_along_the_tokens_and_a_frozen_matrix_costs_no_product_of_its_gradient(
    dtype: torch.dtype,
) -> None:
    layer = ColumnParallelLinear(IN, OUT, place=Place(dtype=dtype))
    low_rank = LowRank(layer, LowRankForm(rank=RANK, scale=SCALE))
    layer.edit("lora", low_rank)
    fill(layer)
    a, b = low_rank.a.detach().double(), low_rank.b.detach().double()
    weight, bias = layer.weight.requires_grad_(False), layer.bias
    assert bias is not None
    x = random(2, TOKENS // 2, IN, seed=1, dtype=dtype).requires_grad_()
    gradient = random(2, TOKENS // 2, OUT, seed=2, dtype=dtype)
    with Products() as products:
        y = layer(x)
        backward(y, gradient)
    of_layer, of_update = [(TOKENS, OUT), (TOKENS, IN)], [(RANK, TOKENS), (TOKENS, OUT)]
    of_gradients = [(RANK, OUT), (RANK, TOKENS), (RANK, IN), (TOKENS, IN)]
    assert sorted(products.shapes) == sorted([*of_layer, *of_update, *of_gradients])

    rows, tolerance = x.detach().double().flatten(0, 1), 1e-12 if dtype == torch.float64 else 2e-2
    updated, of_y = weight.detach().double() + SCALE * b @ a, gradient.double().flatten(0, 1)

    def flat(tensor: Tensor) -> Tensor:
        return tensor.detach().double().flatten(0, 1)

    close(flat(y), rows @ updated.T + bias.detach().double(), "output", tolerance=tolerance)
    close(flat(gradient_of(x)), of_y @ updated, "input", tolerance=tolerance)
    close(gradient_of(low_rank.a), SCALE * b.T @ of_y.T @ rows, "a", tolerance=tolerance)
    close(gradient_of(low_rank.b), SCALE * of_y.T @ rows @ a.T, "b", tolerance=tolerance)
