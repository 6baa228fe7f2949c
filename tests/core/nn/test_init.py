"""Initial values: one function of seed, name and place, whoever computes which part."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from scaling.core.nn.init import (
    Constant,
    Normal,
    Uniform,
    initialize,
    local_part,
    part_of_initial_values,
    xavier_normal,
)
from scaling.core.nn.parameter import Initializer, ParameterMeta, Shard, annotate, even_shard, padded_shard

INITIALIZERS = (Normal(0.5), Uniform(2.0), Constant(3.0))


def values(
    shape: tuple[int, ...],
    *,
    offset: tuple[int, ...] | None = None,
    part: tuple[int, ...] | None = None,
    initializer: Initializer | None = None,
    seed: int = 1,
    key: str = "layers.3.mlp.weight",
) -> NDArray[np.float32]:
    return part_of_initial_values(
        initializer or Normal(1.0),
        seed=seed,
        key=key,
        shape=shape,
        offset=offset or (0,) * len(shape),
        part=part or shape,
    )


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Draw (shape, offset, part); beyond two dimensions only the first is cut."""
    shape = draw(
        st.one_of(
            st.tuples(st.integers(1, 1200)),
            st.tuples(st.integers(1, 200), st.integers(1, 700)),
            st.tuples(st.integers(1, 80), st.integers(1, 9), st.integers(1, 40)),
        )
    )
    offset, part = [], []
    for dim, size in enumerate(shape):
        start = 0 if dim and len(shape) > 2 else draw(st.integers(0, size - 1))
        offset.append(start)
        part.append(size if dim and len(shape) > 2 else draw(st.integers(0, size - start)))
    return shape, tuple(offset), tuple(part)


@settings(max_examples=150)
@given(cut=parts(), initializer=st.sampled_from(INITIALIZERS))
def test_any_part_is_the_slice_of_the_whole(
    cut: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], initializer: Initializer
) -> None:
    shape, offset, part = cut
    whole = values(shape, initializer=initializer)
    place = tuple(slice(start, start + length) for start, length in zip(offset, part, strict=True))
    found = values(shape, offset=offset, part=part, initializer=initializer)
    assert found.dtype == np.float32
    assert np.array_equal(found, whole[place])


def test_a_part_costs_only_the_blocks_it_touches() -> None:
    drawn: list[int] = []

    class Counting:
        def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
            drawn.append(count)
            return np.zeros(count, dtype=np.float32)

    values((50_000, 50_000), offset=(49_000, 100), part=(128, 256), initializer=Counting())
    assert sum(drawn) <= 4 * 3 * 64 * 256


def test_values_are_the_same_on_every_machine_for_ever() -> None:
    # A change of these bits changes every run there is, were it another version of numpy that brings it.
    assert values((3, 2)).tobytes().hex() == "5b95183f554f133e700cb8bdffff7f3d4280264096fea5bd"


def test_a_tensor_without_dimensions_has_a_value_too() -> None:
    assert values(()).shape == ()
    assert values(()) != values((), seed=2)


@given(seeds=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), keys=st.tuples(st.text(), st.text()))
def test_another_seed_or_name_is_another_tensor(seeds: tuple[int, int], keys: tuple[str, str]) -> None:
    one, other = (values((4, 4), seed=seed, key=key) for seed, key in zip(seeds, keys, strict=True))
    assert np.array_equal(one, other) == (seeds[0] == seeds[1] and keys[0] == keys[1])


def test_seed_and_name_do_not_run_into_one_another() -> None:
    assert not np.array_equal(values((4,), seed=1, key="1.weight"), values((4,), seed=11, key=".weight"))


def test_blocks_of_one_tensor_are_independent() -> None:
    whole = values((256, 1024)).reshape(4, 64, 4, 256).swapaxes(1, 2).reshape(16, -1)
    correlations = np.corrcoef(whole) - np.eye(16)
    assert np.abs(correlations).max() < 5 / math.sqrt(64 * 256)


def test_names_that_differ_in_one_character_are_independent() -> None:
    layers = np.stack([values((128, 128), key=f"layers.{index}.weight").ravel() for index in range(8)])
    assert np.abs(np.corrcoef(layers) - np.eye(8)).max() < 5 / 128


@pytest.mark.parametrize("shape", [(1000, 1000), (10**6,), (100, 100, 100)])
def test_distributions_have_the_moments_they_promise(shape: tuple[int, ...]) -> None:
    normal = values(shape, initializer=Normal(0.02)).astype(np.float64).ravel()
    assert abs(normal.mean()) < 0.02 * 5e-3
    assert normal.std() == pytest.approx(0.02, rel=5e-3)
    assert (normal**4).mean() / 0.02**4 == pytest.approx(3, rel=2e-2)
    uniform = values(shape, initializer=Uniform(2.0)).astype(np.float64).ravel()
    assert abs(uniform.mean()) < 1e-2
    assert uniform.std() == pytest.approx(2 / math.sqrt(3), rel=5e-3)
    assert -2 <= uniform.min() < -1.999
    assert 1.999 < uniform.max() <= 2
    assert np.all(values(shape, initializer=Constant(-1.5)) == -1.5)


def test_xavier_counts_the_features_of_the_whole_matrix() -> None:
    assert xavier_normal(300, 500).std == pytest.approx(math.sqrt(2 / 800))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_parameter_is_filled_with_its_part_rounded_to_its_type(dtype: torch.dtype) -> None:
    whole = torch.from_numpy(values((12, 300), key="w"))
    for dim, size in ((0, 12), (1, 300)):
        for index in range(3):
            shard = even_shard(size, 3, index, dim=dim, what="features")
            shape = [12, 300]
            shape[dim] //= 3
            description = ParameterMeta(key="w", global_shape=(12, 300), shard=shard, initializer=Normal(1.0))
            parameter = annotate(nn.Parameter(torch.full(shape, torch.nan, dtype=dtype)), description)
            initialize(parameter, seed=1)
            assert torch.equal(parameter, whole.chunk(3, dim)[index].to(dtype))


@given(size=st.integers(1, 40), parts=st.integers(1, 9))
def test_padding_is_zero(size: int, parts: int) -> None:
    pieces = []
    for index in range(parts):
        shard = padded_shard(size, parts, index, dim=0)
        description = ParameterMeta(key="w", global_shape=(size, 3), shard=shard, initializer=Constant(1.0))
        parameter = annotate(nn.Parameter(torch.full((shard.local_length, 3), torch.nan)), description)
        initialize(parameter, seed=1)
        pieces.append(parameter.detach())
    padded = torch.cat(pieces)
    assert padded[:size].eq(1).all()
    assert not padded[size:].any()


def test_a_parameter_without_an_initializer_is_left_alone() -> None:
    parameter = nn.Parameter(torch.full((2,), 7.0))
    initialize(parameter, seed=1)
    assert parameter.eq(7).all()


def test_the_local_part_leaves_padding_out() -> None:
    shard = Shard(dim=1, offset=8, length=2, local_length=4)
    description = ParameterMeta(global_shape=(3, 10), shard=shard)
    assert local_part(description) == ((0, 8), (3, 2))
    assert local_part(replace(description, shard=None)) == ((0, 0), (3, 10))
