"""What cannot be merged is refused before anything is changed; what can is rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scaling.core import (
    AddedBias,
    Bottleneck,
    ColumnParallelLinear,
    Edit,
    LayoutError,
    LowRank,
    LowRankForm,
    LowRankHead,
    OutputScale,
    Place,
    VocabParallelEmbedding,
    fill,
    merge_edits,
)
from scaling.core.nn.parameter import share
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import tied

FORM = LowRankForm(rank=1, scale=0.5)


class Model(nn.Module):
    """A layer, and a table that is used twice."""

    def __init__(self, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        place = Place(dtype=dtype)
        self.linear = ColumnParallelLinear(4, 4, bias=bias, place=place)
        self.table = VocabParallelEmbedding(6, 4, place=place)
        self.head = VocabParallelEmbedding(6, 4, place=place)
        self.head.weight = self.table.weight


def edited(name: str) -> Model:
    model = Model()
    match name:
        case "computation":
            model.add_module("deep", Bottleneck(4, 2, std=1.0, place=Place()))
        case "bias":
            model.linear.edit("added", AddedBias(model.linear))
        case "lora bias":
            model.linear.edit("lora", LowRank(model.linear, LowRankForm(rank=1, scale=1.0, bias=True)))
        case "logit bias":
            model.head.weight = VocabParallelEmbedding(6, 4).weight
            model.head.edit("lora", LowRankHead(model.head, LowRankForm(rank=1, scale=1.0, bias=True)))
        case "tied":
            model.head.edit("lora", LowRankHead(model.head, FORM))
        case "tied elsewhere":  # the first layer is in another stage
            model.head.weight = VocabParallelEmbedding(6, 4).weight
            share(model.head.weight, Axis.PIPE, tied([0, 3]))
            model.head.edit("lora", LowRankHead(model.head, FORM))
    fill(model)
    return model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("computation", r"deep \(Bottleneck\) is a computation of its own"),
        ("bias", "linear gets a bias, and has none"),
        ("lora bias", "linear gets a bias, and has none"),
        ("logit bias", "head adds to the logit of each token"),
        ("tied", "head is one table with another layer"),
        ("tied elsewhere", "head is one table with another layer"),
    ],
)
def test_what_is_no_change_of_a_weight_is_refused_by_name(name: str, message: str) -> None:
    model = edited(name)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(LayoutError, match=message):
        merge_edits(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(edit.active for edit in model.modules() if isinstance(edit, Edit))


def test_several_edits_of_half_precision_are_rounded_once_together() -> None:
    model = Model(bias=True, dtype=torch.bfloat16)
    low_rank, scale = LowRank(model.linear, FORM), OutputScale(model.linear)
    model.linear.edit("lora", low_rank)
    model.linear.edit("scale", scale)
    fill(model)
    with torch.no_grad():
        for parameter in model.linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    weight, bias = model.linear.weight.float(), model.linear.bias
    assert bias is not None
    wanted = (weight + 0.5 * low_rank.b @ low_rank.a) * scale.scale.unsqueeze(-1)
    of_bias = bias.float() * scale.scale
    merge_edits(model, [low_rank, scale])
    assert torch.equal(model.linear.weight, wanted.to(torch.bfloat16))
    assert torch.equal(bias, of_bias.to(torch.bfloat16))


def test_only_what_is_chosen_is_merged() -> None:
    model = Model()
    first, second = OutputScale(model.linear), OutputScale(model.linear)
    model.linear.edit("first", first)
    model.linear.edit("second", second)
    fill(model)
    with torch.no_grad():
        first.scale.fill_(2.0)
        second.scale.fill_(3.0)
    weight = model.linear.weight.clone()
    merge_edits(model, [second])
    assert torch.equal(model.linear.weight, 3.0 * weight)
    assert (first.active, second.active) == (True, False)
