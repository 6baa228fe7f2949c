"""Joined layers: the same outputs, parameters that stay what they were, and the layers where they must act."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.nn.init import fill
from scaling.core.nn.joined import JoinedLayers
from scaling.core.nn.linear import ColumnParallelLinear, LinearEdit
from scaling.core.nn.place import Place
from tests.reference.compare import close
from tests.reference.worlds import random

DOUBLE = torch.float64


def layers(*, bias: bool = True, width: int = 6) -> Any:
    """Return a list of layers, as a module."""
    place = Place(dtype=DOUBLE)
    made: Any = nn.ModuleList([ColumnParallelLinear(width, out, place=place, bias=bias) for out in (4, 2, 5)])
    fill(made, seed=1)
    for layer in made:
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    return made


def separate(made: Any, x: Tensor) -> Tensor:
    return torch.cat([layer(x) for layer in made], dim=-1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [6, 16])  # fewer features than outputs, and more: kept by columns, and by rows
@torch.no_grad()
def test_one_product_gives_what_the_layers_give_of_whatever_is_in_them(bias: bool, width: int) -> None:
    made, x = layers(bias=bias, width=width), random(2, 2, width, seed=2)
    expected, before = separate(made, x), [parameter.clone() for parameter in made.parameters()]
    joined = JoinedLayers(list(made))
    assert joined.sizes == [4, 2, 5]
    assert all(torch.equal(now, then) for now, then in zip(made.parameters(), before, strict=True))
    assert made[0].weight.untyped_storage().data_ptr() == made[2].weight.untyped_storage().data_ptr()
    assert made[0].weight.stride(0) == (1 if width < 11 else width)
    for _ in range(2):
        found = joined(x)
        assert found is not None
        close(found, expected)
        close(separate(made, x), expected)
        for parameter in made.parameters():
            parameter.copy_(random(*parameter.shape, seed=3))  # as a checkpoint is loaded
        expected = separate(made, x)


def test_the_layers_act_themselves_where_one_product_would_miss_something() -> None:
    made, x = layers(), random(2, 2, 6, seed=2)
    joined = JoinedLayers(list(made))
    assert joined(x) is None  # it would have no gradients
    with torch.no_grad():
        assert joined(random(1, 5, 6, seed=2)) is None  # outputs that stand apart are faster
        usual = joined(x)
        assert usual is not None
        own, made[1].bias.data = made[1].bias.data, torch.ones(2, dtype=DOUBLE)
        other = joined(x)
        assert other is not None
        close(other, separate(made, x))
        assert not torch.equal(other, usual)
        made[1].bias.data = own
        own, made[0].weight.data = made[0].weight.data, torch.ones(4, 6, dtype=DOUBLE)
        assert joined(x) is None
        made[0].weight.data = own
        edit = LinearEdit()
        made[2].edit("added", edit)
        assert joined(x) is None
        edit.active = False
        found = joined(x)
        assert found is not None
        assert torch.equal(found, usual)
        made[1].product = lambda x, weight, bias: torch.zeros(2, 2, 2, dtype=DOUBLE)
        assert joined(x) is None
