"""8-bit products: rounding and scales, the three of a layer, the same on all layouts, and what GPUs are told."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core.errors import ConfigError
from scaling.core.nn import float8
from scaling.core.nn.config import FP8LinearConfig
from scaling.core.nn.float8 import Float8Product, emulated, largest, rounded, scale_of
from scaling.core.nn.float8_recipe import Float8Recipe, FP8DType, Operands, float8_obstacle
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.place import Place
from tests.distributed import run_distributed
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import GATHER, SCATTER, SUM, Dense, Weights, compare_layer
from tests.reference.worlds import connected, random

DOUBLE = torch.float64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ALL_E4M3 = Operands(FP8DType.E4M3, FP8DType.E4M3)
RECIPES = {
    "tensor": Float8Recipe(),
    "row": Float8Recipe(per_row=True),
    "row, all e4m3": Float8Recipe(per_row=True, grad_input=ALL_E4M3, grad_weight=ALL_E4M3),
    "row, weight gradients in high precision": Float8Recipe(per_row=True, grad_weight=None),
    "tensor, weight gradients in high precision": Float8Recipe(grad_weight=None),
    "forward alone": Float8Recipe(per_row=True, grad_input=None, grad_weight=None),
    "backward alone, per row": Float8Recipe(per_row=True, forward=None),
    "backward alone": Float8Recipe(forward=None),
}


@pytest.mark.parametrize(("dtype", "most"), [(E4M3, 448.0), (E5M2, 57344.0)])
@pytest.mark.parametrize("size", [1e-25, 3e-7, 0.9999, 1.0, 447.0, 448.0, 449.0, 5e5])
def test_the_scale_is_the_largest_power_of_two_that_keeps_the_range(
    dtype: torch.dtype, most: float, size: float
) -> None:
    scale = float(scale_of(torch.tensor(size), dtype))
    assert math.frexp(scale)[0] == 0.5
    assert size * scale <= most * (1 + 1e-6) < 2 * size * scale * (1 + 2e-6)


def test_zeros_have_a_finite_scale_and_stay_zeros() -> None:
    scale = scale_of(largest(torch.zeros(4)), E4M3)
    assert torch.isfinite(scale)
    assert not rounded(torch.zeros(4), scale, E4M3).float().any()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("per_row", [True, False])
def test_what_is_not_finite_stays_so(value: float, per_row: bool) -> None:
    x = random(4, 16, seed=1).float()
    x[2, 3] = value
    y = Float8Product(Float8Recipe(per_row=per_row), Place(), inputs_cut=False)(x, random(8, 16, seed=2).float(), None)
    assert not torch.isfinite(y[2]).any()


def test_a_scale_of_another_power_of_two_changes_only_the_smallest_numbers() -> None:
    x = random(10_000, seed=1)
    one, other = (rounded(x, torch.tensor(scale), E4M3).double() / scale for scale in (64.0, 16.0))
    least = 2.0**-6 / 16.0  # the smallest normal number of the coarser of the two
    assert torch.equal(one[x.abs() >= least], other[x.abs() >= least])
    assert float((one - other).abs().max()) <= 2.0**-10 / 16.0


def eighth(x: Tensor, dtype: torch.dtype, dim: int | None) -> Tensor:
    """Return numbers rounded by the definition: to the nearest 8-bit number of x times a power of two, and back."""
    sizes = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = torch.exp2(torch.floor(torch.log2(torch.finfo(dtype).max / sizes.float())))
    return (x * scale).to(dtype).double() / scale.double()


def by_definition(recipe: Float8Recipe, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, input gradient and weight gradient of rows, in float64 of rounded operands."""
    types = {FP8DType.E4M3: E4M3, FP8DType.E5M2: E5M2, None: None}
    found = []
    for operands, a, b, swapped in (
        (recipe.forward, x, weight.t(), False),
        (recipe.grad_input, grad, weight, False),
        (recipe.grad_weight, grad.t(), x, True),
    ):
        if operands is None:
            found.append(a.double() @ b.double())
            continue
        left, right = reversed(operands) if swapped else operands
        dims = (1, 0) if recipe.per_row else (None, None)
        found.append(eighth(a, types[left], dims[0]) @ eighth(b, types[right], dims[1]))  # type: ignore[arg-type]  # no None here
    return found[0], found[1], found[2]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16, torch.float16])
def test_the_three_products_are_those_of_rounded_operands(name: str, dtype: torch.dtype) -> None:
    recipe = RECIPES[name]
    x, weight = (random(*shape, seed=n).to(dtype).requires_grad_() for n, shape in enumerate([(2, 24, 32), (16, 32)]))
    grad = (random(2, 24, 16, seed=5) * 1e-3).to(dtype)
    bias = random(16, seed=6).to(dtype)
    y = Float8Product(recipe, Place(dtype=dtype), inputs_cut=False)(x, weight, bias)
    backward(y, grad)
    rows = x.detach().flatten(0, 1), weight.detach(), grad.flatten(0, 1)
    expected = by_definition(recipe, *rows)
    tolerance = {DOUBLE: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
    close(y.detach().double().flatten(0, 1), expected[0] + bias, "output", tolerance=tolerance)
    close(gradient_of(x).double().flatten(0, 1), expected[1], "input gradient", tolerance=tolerance)
    close(gradient_of(weight).double(), expected[2], "weight gradient", tolerance=tolerance)
    assert y.dtype == gradient_of(x).dtype == gradient_of(weight).dtype == dtype


def test_gradients_nobody_wants_are_not_computed() -> None:
    multiply = mock.Mock(side_effect=emulated)
    with mock.patch.object(float8, "emulated", multiply):
        layer = Float8Product(Float8Recipe(), Place(), inputs_cut=False)
    x, weight = torch.ones(16, 16, requires_grad=True), torch.ones(16, 16)
    layer(x, weight, None).sum().backward()
    assert multiply.call_count == 2


def test_operands_are_laid_out_as_kernels_want_them() -> None:
    """torch._scaled_mm refuses others; on a CPU it computes e4m3 with a scale for each operand."""

    def on_cpu(
        a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype, *, use_fast_accum: bool
    ) -> Any:
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        return torch._scaled_mm(a, b, scale_a=1 / scale_a, scale_b=1 / scale_b, out_dtype=dtype)

    recipe = Float8Recipe(grad_input=ALL_E4M3, grad_weight=ALL_E4M3)
    found = []
    for multiply in (on_cpu, emulated):
        with mock.patch.object(float8, "emulated", multiply):
            layer = Float8Product(recipe, Place(dtype=torch.bfloat16), inputs_cut=False)
        x, weight = (random(*s, seed=n).bfloat16().requires_grad_() for n, s in enumerate([(48, 32), (16, 32)]))
        y = layer(x, weight, None)
        y.sum().backward()
        found.append([y.detach(), gradient_of(x), gradient_of(weight)])
    for one, other in zip(*found, strict=True):
        close(one.double(), other.double(), "product", tolerance=2.0**-7)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_it_is_one_graph_to_the_compiler() -> None:
    layer = Float8Product(Float8Recipe(per_row=True), Place(), inputs_cut=False)
    x, weight = random(16, 32, seed=1).float().requires_grad_(), random(16, 32, seed=2).float().requires_grad_()
    compiled = torch.compile(lambda: layer(x, weight, None).square().sum(), backend="aot_eager", fullgraph=True)
    gradients = []
    for loss in (compiled, lambda: layer(x, weight, None).square().sum()):
        x.grad = weight.grad = None
        loss().backward()
        gradients.append((gradient_of(x).clone(), gradient_of(weight).clone()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def dense(recipe: Float8Recipe) -> Dense:
    """Return the layer in one process, of the whole weights."""
    whole = Float8Product(recipe, Place(dtype=DOUBLE), inputs_cut=False)

    def formula(weights: Weights, x: Tensor) -> Tensor:
        return whole(x, weights["weight"], weights.get("bias"))

    return formula


def compare_cut(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, 8, 16, seed=1) * torch.logspace(-3, 3, 16, dtype=DOUBLE)
        for (name, recipe), sequence_parallel in product(RECIPES.items(), (False, True)):
            place = Place(topology, DOUBLE, sequence_parallel)
            cut = 1 if sequence_parallel else None
            own, other = [SUM] if not sequence_parallel else [SCATTER], [SUM] if not sequence_parallel else [GATHER]
            row = RowParallelLinear(16, 8, place=place)
            row.product = Float8Product(recipe, place, inputs_cut=True)
            messages = compare_layer(
                row, dense(recipe), x, topology, cut_input=-1, cut_output=cut, what=f"row-parallel, {name}"
            )
            sizes = [SUM] if recipe.forward is not None or not recipe.per_row else []
            assert messages == [*sizes, *own, *(other if sequence_parallel else [])], name
            if not sequence_parallel:
                column = ColumnParallelLinear(16, 8, place=place)
                column.product = Float8Product(recipe, place, inputs_cut=False)
                messages = compare_layer(
                    column, dense(recipe), x, topology, cut_output=-1, what=f"column-parallel, {name}"
                )
                forward = [] if recipe.per_row else [SUM]
                sizes = [SUM] if recipe.grad_input is not None or not recipe.per_row else []
                assert messages == [*forward, *sizes, SUM], name


@pytest.mark.parametrize("world_size", [2, 4])
def test_layers_that_are_cut_round_as_those_that_are_whole(world_size: int) -> None:
    run_distributed(compare_cut, world_size)


def test_a_section_says_the_recipe() -> None:
    assert FP8LinearConfig().recipe == Float8Recipe()
    section = {"granularity": "row", "dtypes_grad_weight": None, "dtypes_grad_input": {"left_dtype": "e4m3"}}
    expected = Float8Recipe(per_row=True, grad_input=ALL_E4M3, grad_weight=None)
    assert FP8LinearConfig.from_dict(section).recipe == expected
    assert str(expected) == "float8 scaled per row, but for the weight gradient"
    assert str(replace(expected, per_row=False, forward=None)) == (
        "float8 scaled per tensor, but for the output and the weight gradient"
    )


def test_what_a_gpu_lacks_is_told() -> None:
    can: dict[str, Any] = {"device": "cuda", "capability": (9, 0), "has_torchao": True, "precision": "bfloat16"}
    assert float8_obstacle(**can) is None
    assert float8_obstacle(**can | {"capability": None}) is None
    assert float8_obstacle(**can | {"device": "cpu", "capability": None, "has_torchao": False}) is None
    assert float8_obstacle(**can | {"capability": (8, 0)}) == (
        "8-bit products need a GPU of compute capability 8.9 or later, and this one has 8.0; remove it"
    )
    assert float8_obstacle(**can | {"has_torchao": False}) == (
        "8-bit products need the package torchao, which is not installed; `pip install torchao`, or remove it"
    )
    assert float8_obstacle(**can | {"precision": "float16"}) == (
        "on a GPU 8-bit products belong to a model in bfloat16, and precision is float16; change either"
    )


def test_a_gpu_multiplies_through_torchao_and_one_that_cannot_is_refused() -> None:
    addmm, place = mock.Mock(), Place(topology=mock.Mock(device=torch.device("cuda")), dtype=torch.bfloat16)
    modules = {
        "torchao": mock.Mock(__spec__=mock.Mock()),
        "torchao.float8": mock.Mock(),
        "torchao.float8.float8_ops": mock.Mock(addmm_float8_unwrapped=addmm),
    }
    capability = mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0))
    with mock.patch.dict("sys.modules", modules), capability as found:
        with pytest.raises(ConfigError, match=r"this one has 8\.0; remove it"):
            Float8Product(Float8Recipe(), place, inputs_cut=False)
        found.return_value = (9, 0)
        assert Float8Product(Float8Recipe(), place, inputs_cut=False).multiply is addmm
