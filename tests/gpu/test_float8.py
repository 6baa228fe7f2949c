"""8-bit products on a GPU: the numbers of the emulation, no waiting, and a graph that can be captured."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from scaling.core.nn import float8
from scaling.core.nn.float8 import Float8Product, emulated, find_float8_obstacle
from scaling.core.nn.float8_recipe import Float8Recipe, FP8DType, Operands
from scaling.core.nn.place import Place
from scaling.core.topology.topology import Topology
from tests.gpu.waiting import without_waiting
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
ALL_E4M3 = Operands(FP8DType.E4M3, FP8DType.E4M3)
RECIPES = {
    "tensor": Float8Recipe(),
    "row": Float8Recipe(per_row=True, grad_input=ALL_E4M3, grad_weight=ALL_E4M3),
    "row, gradients in e5m2": Float8Recipe(per_row=True),
    "row, weight gradients in high precision": Float8Recipe(per_row=True, grad_weight=None),
}


def layer_of(recipe: Float8Recipe) -> Float8Product:
    if obstacle := find_float8_obstacle(GPU, torch.bfloat16):
        pytest.skip(obstacle)
    return Float8Product(recipe, Place(Topology.single("cuda"), torch.bfloat16), inputs_cut=False)


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    x, weight = (random(*shape, seed=n).to(GPU, torch.bfloat16) for n, shape in enumerate([(4, 64, 256), (128, 256)]))
    return x.requires_grad_(), weight.requires_grad_(), random(4, 64, 128, seed=3).to(GPU, torch.bfloat16)


@pytest.mark.parametrize("name", RECIPES)
def test_products_are_those_of_the_emulation(name: str) -> None:
    found = []
    for multiply in (None, emulated):
        layer = layer_of(RECIPES[name])
        if multiply is not None:
            with mock.patch.object(float8, "_multiply_on", return_value=emulated):
                layer = layer_of(RECIPES[name])
        x, weight, gradient = leaves()
        y = layer(x, weight, None)
        backward(y, gradient)
        found.append([y.detach(), gradient_of(x), gradient_of(weight)])
    for actual, expected in zip(*found, strict=True):
        distance = (actual.double() - expected.double()).norm() / expected.double().norm()
        assert float(distance) < 2.0**-7, name  # bfloat16 results; fast accumulation keeps some 14 bits


@pytest.mark.parametrize("name", RECIPES)
def test_the_host_never_waits_for_the_device(name: str) -> None:
    layer = layer_of(RECIPES[name])
    x, weight, gradient = leaves()
    backward(layer(x, weight, None), gradient)
    torch.cuda.synchronize()
    with without_waiting():
        backward(layer(x, weight, None), gradient)


@pytest.mark.parametrize("name", RECIPES)
def test_forward_and_backward_are_captured_as_a_graph(name: str) -> None:
    layer = layer_of(RECIPES[name])
    x, weight, gradient = leaves()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            usual = torch.autograd.grad(layer(x, weight, None), (x, weight), gradient)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(layer(x, weight, None), (x, weight), gradient)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, usual, strict=True))
