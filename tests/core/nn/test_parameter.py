"""Descriptions of parameters, and how dimensions are cut."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scaling.core.errors import LayoutError
from scaling.core.nn.linear import ColumnParallelLinear
from scaling.core.nn.parameter import (
    ParameterMeta,
    Shard,
    annotate,
    even_shard,
    meta,
    named_parameters_with_meta,
    update_meta,
)
from tests.reference.worlds import view_of


def test_a_parameter_nobody_described_is_whole_on_every_rank() -> None:
    description = meta(nn.Parameter(torch.zeros(3, 4)))
    assert description == ParameterMeta(global_shape=(3, 4))
    assert description.shard is None
    assert description.model_replicas(8) == 8


def test_a_description_stays_with_its_parameter() -> None:
    described = ParameterMeta(key="w", global_shape=(8,), shard=Shard(dim=0, offset=4, length=4, local_length=4))
    parameter = nn.Parameter(torch.zeros(4))
    assert annotate(parameter, described) is parameter
    assert meta(parameter) == described
    update_meta(parameter, key="other", lr_scale=2.0)
    assert meta(parameter).key == "other"
    assert meta(parameter).lr_scale == 2.0
    assert meta(parameter).shard == described.shard


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_shard_says_how_many_ranks_hold_it(parts: int) -> None:
    shard = Shard(dim=0, offset=0, length=2, local_length=2, replicas=parts)
    assert ParameterMeta(global_shape=(8,), shard=shard).model_replicas(4) == parts


@given(length=st.integers(1, 50), parts=st.integers(1, 12))
def test_even_shards_cover_a_dimension_once(length: int, parts: int) -> None:
    shards = [even_shard(length * parts, parts, index, dim=1, what="features") for index in range(parts)]
    assert [row for s in shards for row in range(s.offset, s.offset + s.length)] == list(range(length * parts))
    assert all(s.dim == 1 and s.local_length == s.length and s.replicas == 1 for s in shards)


def test_a_remainder_is_refused_by_name() -> None:
    with pytest.raises(LayoutError, match=r"hidden_size \(10\) must be divisible by model_parallel_size \(4\)"):
        even_shard(10, 4, 0, dim=0, what="hidden_size")


def test_shared_parameters_are_yielded_once() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[1].weight = module[0].weight
    assert [name for name, _, _ in named_parameters_with_meta(module)] == ["0.weight", "0.bias", "1.bias"]


def test_descriptions_can_be_copied_and_pickled() -> None:
    description = ParameterMeta(key="w", global_shape=(8,), tied="w")
    assert pickle.loads(pickle.dumps(description)) == copy.deepcopy(description) == description


def test_a_copied_layer_keeps_the_descriptions_of_its_parameters() -> None:
    layer = ColumnParallelLinear(4, 8, topology=view_of(1, model=2))
    twice = copy.deepcopy(nn.ModuleList([layer, layer]))
    copied = twice[0]
    assert copied is twice[1]
    assert isinstance(copied, ColumnParallelLinear)
    assert copied.weight is not layer.weight
    assert torch.equal(copied.weight, layer.weight)
    for one, other in zip(copied.parameters(), layer.parameters(), strict=True):
        assert meta(one) == meta(other)
        assert meta(one).shard is not None
