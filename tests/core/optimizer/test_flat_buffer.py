"""Flat buffers: every parameter in one place, buckets that cut evenly, and the way back to global tensors."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scaling.core.checkpoint.boxes import Box, first_overlap
from scaling.core.nn.parameter import ParameterMeta, Shard, annotate, even_shard, meta, padded_shard
from scaling.core.optimizer.flat_buffer import (
    ALIGNMENT,
    BufferKind,
    FlatBuffer,
    build_buffers,
    gradient_dtype,
    places,
    plan,
)

SIZES = st.lists(st.integers(0, 2000), min_size=1, max_size=20)


@settings(max_examples=200)
@given(sizes=SIZES, bucket_size=st.integers(1, 5000), parts=st.integers(1, 8))
def test_plans_place_every_parameter_once_and_cut_buckets_evenly(
    sizes: list[int], bucket_size: int, parts: int
) -> None:
    placements, buckets = plan(sizes, bucket_size=bucket_size, parts=parts)
    assert [place.stop - place.start for place in placements] == sizes
    assert all(place.start % ALIGNMENT == 0 for place in placements)
    assert all(before.stop <= after.start for before, after in pairwise(placements))
    assert buckets[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(buckets))
    for place in placements:
        bucket = buckets[place.bucket]
        assert bucket.start <= place.start <= place.stop <= bucket.stop
    for number, bucket in enumerate(buckets):
        held = [place for place in placements if place.bucket == number]
        assert held
        slices = [bucket.slice_of(index, parts) for index in range(parts)]
        assert [slices[0].start, slices[-1].stop] == [bucket.start, bucket.stop]
        assert all(one.stop == other.start for one, other in pairwise(slices))
        assert all((part.stop - part.start) % ALIGNMENT == 0 for part in slices)
        # As large as asked for and no larger than the last parameter makes it; padding below a parameter's and a cut's.
        if number < len(buckets) - 1:
            assert bucket.stop - bucket.start >= bucket_size
        assert held[-1].start - bucket.start < bucket_size or len(held) == 1
        padding = bucket.stop - bucket.start - sum(place.stop - place.start for place in held)
        assert padding < ALIGNMENT * (len(held) + parts)


def kind(dtype: torch.dtype = torch.float32, *, group: int = 0) -> BufferKind:
    return BufferKind(group=group, lr_scale=1.0, dtype=dtype, model_replicas=1, sum_grad_over_model=False, tied=None)


def named(parameter: nn.Parameter, key: str, shard: Shard | None = None, **others: Any) -> nn.Parameter:
    shape = list(parameter.shape)
    if shard is not None:
        shape[shard.dim] = 2 * shard.length
    return annotate(parameter, ParameterMeta(key=key, global_shape=tuple(shape), shard=shard, **others))


def with_meta(*parameters: nn.Parameter) -> list[tuple[nn.Parameter, ParameterMeta]]:
    return [(parameter, meta(parameter)) for parameter in parameters]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_parameters_and_gradients_become_views(dtype: torch.dtype) -> None:
    shapes = [(3, 5), (7,), (2, 3, 4)]
    parameters = [named(nn.Parameter(torch.randn(shape, dtype=dtype)), str(shape)) for shape in shapes]
    values = [parameter.detach().clone() for parameter in parameters]
    buffer = FlatBuffer(kind(dtype), with_meta(*parameters), bucket_size=32, parts=2)
    assert buffer.weights.dtype == dtype
    assert buffer.gradients.dtype == gradient_dtype(dtype) == (dtype if dtype == torch.float64 else torch.float32)
    for parameter, value, place in zip(parameters, values, buffer.placements, strict=True):
        assert torch.equal(parameter, value)
        buffer.weights[place.start : place.stop] = 2.0
        assert parameter.eq(2).all()
        assert parameter.grad is not None
        buffer.gradients[place.start : place.stop] = 3.0
        assert parameter.grad.eq(3).all()
        assert parameter.grad.shape == parameter.shape
    padding = torch.ones(len(buffer.weights), dtype=torch.bool)
    for place in buffer.placements:
        padding[place.start : place.stop] = False
    assert not buffer.weights[padding].any()
    assert not buffer.gradients[padding].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_passes_add_to_half_precision_gradients_in_float32(dtype: torch.dtype) -> None:
    parameter = named(nn.Parameter(torch.ones(4, dtype=dtype)), "w")
    buffer = FlatBuffer(kind(dtype), with_meta(parameter), bucket_size=64, parts=1)
    # 1 + 2^-12 is 1 in either type: adding them one by one would lose all of it.
    for scale in (1.0, *[2.0**-12] * 64):
        torch.autograd.backward((parameter * torch.tensor(scale, dtype=dtype)).sum())
    assert parameter.grad is not None
    assert parameter.grad.data_ptr() == buffer.gradients.data_ptr()
    assert parameter.grad.tolist() == [1 + 2.0**-6] * 4


def test_a_parameter_used_twice_adds_once() -> None:
    parameter = named(nn.Parameter(torch.ones(4)), "w")
    buffer = FlatBuffer(kind(), with_meta(parameter), bucket_size=64, parts=1)
    arrivals: list[int] = []
    parameter.register_post_accumulate_grad_hook(lambda _: arrivals.append(1))
    for _ in range(3):
        torch.autograd.backward((parameter * parameter.detach() + parameter).sum())
    assert arrivals == [1, 1, 1]
    assert buffer.gradients[:4].tolist() == [6.0] * 4


@st.composite
def shards(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Shard | None]]:
    """Draw a global shape and its shards over one or more ranks; the last may be padding."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    parts = draw(st.integers(1, 4))
    if draw(st.booleans()):
        return shape, [None]
    dim = draw(st.integers(0, len(shape) - 1))
    if shape[dim] % parts == 0 and draw(st.booleans()):
        return shape, [even_shard(shape[dim], parts, index, dim=dim, what="w") for index in range(parts)]
    return shape, [padded_shard(shape[dim], parts, index, dim=dim) for index in range(parts)]


@settings(max_examples=150)
@given(
    tensors=st.lists(shards(), min_size=1, max_size=4), data_ranks=st.integers(1, 4), bucket_size=st.integers(1, 400)
)
def test_what_all_ranks_own_are_the_global_tensors_each_element_once(
    tensors: list[tuple[tuple[int, ...], list[Shard | None]]], data_ranks: int, bucket_size: int
) -> None:
    """Buffers of every rank of the model axis, every data rank's slices: together the whole, without padding."""
    wholes = [torch.arange(1.0, prod(shape) + 1).view(shape) for shape, _ in tensors]
    rebuilt = [torch.zeros(shape) for shape, _ in tensors]
    boxes: dict[str, list[Box]] = {}
    for index in range(max(len(cut) for _, cut in tensors)):
        parameters = []
        for number, (shape, cut) in enumerate(tensors):
            if index >= len(cut):
                continue
            shard, local = cut[index], list(shape)
            value = wholes[number]
            if shard is not None:
                local[shard.dim] = shard.local_length
                value = value.narrow(shard.dim, shard.offset, shard.length)
            parameter = nn.Parameter(torch.zeros(local))
            with torch.no_grad():
                parameter[tuple(slice(0, length) for length in value.shape)] = value
            description = ParameterMeta(key=str(number), global_shape=shape, shard=shard)
            parameters.append((annotate(parameter, description), description))
        buffer = FlatBuffer(kind(), parameters, bucket_size=bucket_size, parts=data_ranks)
        for data in range(data_ranks):
            for bucket in buffer.buckets:
                owned = bucket.slice_of(data, data_ranks)
                for description, parts in buffer.boxes(owned, buffer.weights[owned]):
                    for box, view in parts:
                        assert view.numel() == box.size > 0
                        place = tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))
                        rebuilt[int(description.key)][place] += view
                        boxes.setdefault(description.key, []).append(box)
                        view.add_(0.5)  # a view: loading writes through it
        for parameter, description in parameters:
            real = parameter.detach()
            if description.shard is not None:
                real = real.narrow(description.shard.dim, 0, description.shard.length)
            assert real.frac().eq(0.5).all()
    assert all(torch.equal(found, whole) for found, whole in zip(rebuilt, wholes, strict=True))
    assert all(first_overlap(found) is None for found in boxes.values())


def test_parameters_are_sorted_by_kind_and_within_a_kind_from_the_last_to_the_first() -> None:
    layers = [
        [
            named(nn.Parameter(torch.zeros(4, 4)), f"{layer}.matrix", even_shard(8, 2, 0, dim=0, what="w")),
            named(nn.Parameter(torch.zeros(4)), f"{layer}.norm", sum_grad_over_model=True),
            named(nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)), f"{layer}.half"),
        ]
        for layer in range(3)
    ]
    tied = named(nn.Parameter(torch.zeros(4)), "tied", tied="tied")
    slow = named(nn.Parameter(torch.zeros(4)), "slow", lr_scale=0.5)
    first = with_meta(tied, *(parameter for layer in layers for parameter in layer), slow)
    second = with_meta(named(nn.Parameter(torch.zeros(4)), "other group"))
    buffers = build_buffers([first, second], model_parallel_size=2, bucket_size=10**6, parts=2)
    assert [[description.key for _, description in buffer.parameters] for buffer in buffers] == [
        ["slow"],
        ["2.half", "1.half", "0.half"],
        ["2.norm", "1.norm", "0.norm"],
        ["2.matrix", "1.matrix", "0.matrix"],
        ["tied"],
        ["other group"],
    ]
    assert [buffer.kind.model_replicas for buffer in buffers] == [2, 2, 2, 1, 2, 2]
    assert [buffer.kind.sum_grad_over_model for buffer in buffers] == [False, False, True, False, False, False]
    assert [buffer.kind.group for buffer in buffers] == [0, 0, 0, 0, 0, 1]
    located = places(buffers)
    assert len(located) == 12
    assert located[slow] == (0, 0)
    assert located[tied] == (4, 0)


def test_one_model_rank_sums_nothing_over_the_model_axis() -> None:
    norm = named(nn.Parameter(torch.zeros(4)), "norm", sum_grad_over_model=True)
    (buffer,) = build_buffers([with_meta(norm)], model_parallel_size=1, bucket_size=10, parts=1)
    assert not buffer.kind.sum_grad_over_model


def test_a_group_may_be_empty_on_a_rank() -> None:
    assert build_buffers([[], []], model_parallel_size=1, bucket_size=10, parts=1) == []
