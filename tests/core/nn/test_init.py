"""Initial values: one function of seed, name and place, whoever computes which part."""

from __future__ import annotations

import math
import threading
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from scaling.core.nn.init import Constant, Normal, Uniform, fill, part_of_initial_values, xavier_normal
from scaling.core.nn.parameter import Initializer, annotate, fused_parameter, meta, new_parameter
from scaling.core.nn.shard import even_shard, padded_shard

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
    for initializer, bits in (
        (Normal(0.5), "a9a57f3db200eb3e1e97e23e78f9843e"),
        (Uniform(2.0), "e05e583f2a88bd3fe2bfd8bfd88eff3f"),
    ):
        drawn = values((200, 700), offset=(63, 511), part=(2, 2), initializer=initializer)  # where four blocks meet
        assert drawn.tobytes().hex() == bits


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


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize(
    ("shape", "offset", "part"),
    [
        ((1000, 600), (0, 0), (1000, 600)),
        ((1000, 1000), (77, 130), (700, 800)),
        ((60_000,), (1000,), (50_000,)),
        ((40, 30, 500), (10, 0, 0), (20, 30, 500)),
    ],
)
def test_threads_draw_the_bits_that_one_draws(
    shape: tuple[int, ...], offset: tuple[int, ...], part: tuple[int, ...], threads: int
) -> None:
    for initializer in INITIALIZERS:
        alone = values(shape, offset=offset, part=part, initializer=initializer)
        with mock.patch.object(torch, "get_num_threads", return_value=threads):
            together = values(shape, offset=offset, part=part, initializer=initializer)
        assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("threads", [2, 4])
def test_as_many_threads_draw_at_a_time_as_torch_computes_with(threads: int) -> None:
    all_there = threading.Barrier(threads)

    class Waiting:
        def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
            all_there.wait(timeout=60)
            return np.zeros(count, dtype=np.float32)

    with mock.patch.object(torch, "get_num_threads", return_value=threads):
        assert not values((512, 1024), initializer=Waiting()).any()


def test_an_error_in_a_thread_is_not_lost() -> None:
    class Broken:
        def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
            raise ArithmeticError("no such number")

    with (
        mock.patch.object(torch, "get_num_threads", return_value=4),
        pytest.raises(ArithmeticError, match="no such number"),
    ):
        values((1000, 1000), initializer=Broken())


class Holder(nn.Module):
    """Parameters under the names given."""

    def __init__(self, **parameters: nn.Parameter) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_a_parameter_is_filled_with_its_part_rounded_to_its_type(dtype: torch.dtype, initializer: Initializer) -> None:
    whole = torch.from_numpy(values((12, 300), key="w", initializer=initializer))
    for dim, size in ((0, 12), (1, 300)):
        for index in range(3):
            shard = even_shard(size, 3, index, dim=dim, what="features")
            parameter = new_parameter((12, 300), initializer, shard=shard, dtype=dtype)
            fill(Holder(w=parameter), seed=1)
            assert parameter.dtype == dtype
            assert torch.equal(parameter, whole.chunk(3, dim)[index].to(dtype))


@given(size=st.integers(1, 40), parts=st.integers(1, 9), dim=st.sampled_from([0, 1]))
def test_padding_is_zero(size: int, parts: int, dim: int) -> None:
    pieces = []
    for index in range(parts):
        shard = padded_shard(size, parts, index, dim=dim)
        shape = (size, 3) if dim == 0 else (3, size)
        # Where memory has been used before, `empty` returns what was in it.
        with mock.patch.object(torch, "empty_like", lambda t, device: torch.full(t.shape, torch.nan, device=device)):
            parameter = new_parameter(shape, Constant(1.0), shard=shard)
            fill(Holder(w=parameter), seed=1)
        pieces.append(parameter.detach())
    padded = torch.cat(pieces, dim)
    assert padded.narrow(dim, 0, size).eq(1).all()
    assert not padded.narrow(dim, size, padded.shape[dim] - size).any()


def test_pieces_of_a_fused_parameter_have_the_values_that_they_have_alone() -> None:
    parts = [even_shard(size, 2, 1, dim=0, what="rows") for size in (4, 130)]
    fused = fused_parameter({"a": ((4, 300), parts[0], Normal(1.0)), "b": ((130, 300), parts[1], Uniform(2.0))})
    holder = nn.Module()
    holder.add_module("layer", nn.Module())
    holder.get_submodule("layer").add_module("both", Holder(weight=fused))
    fill(holder, seed=3)
    alone = [
        values((size, 300), offset=(size // 2, 0), part=(size // 2, 300), initializer=initializer, seed=3, key=key)
        for size, initializer, key in ((4, Normal(1.0), "layer.a.weight"), (130, Uniform(2.0), "layer.b.weight"))
    ]
    assert np.array_equal(fused.detach().numpy(), np.concatenate(alone))


def test_described_parameters_are_filled_once_and_stay_the_objects_they_are() -> None:
    parameter, bias = new_parameter((4, 6), Normal(1.0)), new_parameter((4,), Constant(2.0))
    bias.requires_grad_(False)
    module = nn.ModuleList([Holder(weight=parameter, bias=bias), Holder(weight=parameter)])
    assert all(p.is_meta for p in module.parameters())
    assert fill(module, seed=1) is module
    assert module[0].weight is module[1].weight is parameter
    assert module[0].bias is bias
    assert isinstance(parameter, nn.Parameter)
    assert not any(p.is_meta for p in module.parameters())
    assert (parameter.requires_grad, bias.requires_grad) == (True, False)
    assert bias.eq(2).all()
    expected = torch.from_numpy(values((4, 6), key="0.weight"))
    assert torch.equal(parameter, expected)
    assert meta(parameter).name == "0.weight"  # of the first place, as everywhere
    address, kept = parameter.data_ptr(), parameter.detach().clone()
    fill(module, seed=2)
    assert parameter.data_ptr() == address
    assert torch.equal(parameter, kept)
    with torch.no_grad():
        parameter.add_(1)
    fill(nn.ModuleList([module]), seed=1)
    assert torch.equal(parameter, kept + 1)
    parameter.sum().backward()
    assert parameter.grad is not None


def test_a_parameter_that_has_its_name_in_the_model_is_filled_under_that() -> None:
    parameter = new_parameter((4, 6), Normal(1.0))
    annotate(parameter, meta(parameter).named("layers.3.mlp.weight"))
    fill(Holder(w=parameter), seed=1)
    assert np.array_equal(parameter.detach().numpy(), values((4, 6)))
    assert meta(parameter).name == "layers.3.mlp.weight"


def test_what_has_values_keeps_them_and_moves_to_the_device_with_the_rest() -> None:
    plain = nn.BatchNorm1d(3)
    with torch.no_grad():
        plain.weight.fill_(7.0)
    own = nn.Parameter(torch.full((2,), 7.0))
    module = nn.ModuleList([plain, Holder(own=own, described=new_parameter((2,), Constant(1.0)))])
    fill(module, seed=1)
    assert plain.weight.eq(7).all()
    assert plain.running_var is not None
    assert plain.running_var.eq(1).all()
    assert module[1].own is own
    assert own.eq(7).all()
    fill(module, seed=1, device="meta")
    assert {t.device.type for t in (*module.parameters(), *module.buffers())} == {"meta"}


def test_filling_a_described_parameter_draws_nothing_from_the_streams_of_torch() -> None:
    torch.manual_seed(5)
    fill(Holder(w=new_parameter((4, 6), Normal(1.0))), seed=1)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
