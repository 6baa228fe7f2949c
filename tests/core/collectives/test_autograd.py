"""Every differentiable collective against the derivative of what it computes, all ranks' tensors at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scaling.core.collectives.autograd import (
    copy_to_model,
    gather_features,
    gather_sequence,
    reduce_from_model,
    scatter_sequence,
    split_features,
)
from scaling.core.topology.layout import Axis
from tests.distributed import run_distributed
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import connected, model_group, random

Slices = list[Tensor]


@dataclass(frozen=True)
class Case:
    """A collective, and what it is mathematically: all ranks' inputs to all ranks' outputs.

    Where the input (or output) is one tensor that all ranks hold alike, the dense function sees (or makes) it once.
    """

    name: str
    collective: Callable[..., Tensor]
    one_input: bool
    one_output: bool
    dense: Callable[[Slices, int, int], Slices]
    takes_dim: bool = True


CASES = (
    Case("copy", copy_to_model, True, False, lambda x, n, dim: x * n, takes_dim=False),
    Case("reduce", reduce_from_model, False, True, lambda x, n, dim: [sum(x, torch.zeros(()))], takes_dim=False),
    Case("gather_sequence", gather_sequence, False, False, lambda x, n, dim: [torch.cat(x, dim)] * n),
    Case(
        "scatter_sequence", scatter_sequence, False, False, lambda x, n, dim: list(torch.stack(x).sum(0).chunk(n, dim))
    ),
    Case("gather_features", gather_features, False, True, lambda x, n, dim: [torch.cat(x, dim)]),
    Case("split_features", split_features, True, False, lambda x, n, dim: list(x[0].chunk(n, dim))),
)

SHAPES = ((4, 8, 4), (8, 4, 12, 4), (4, 4))


def compare_with_the_derivative(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        for number, (case, shape) in enumerate((case, shape) for case in CASES for shape in SHAPES):
            for dim in range(-1, len(shape)) if case.takes_dim else (0,):
                ranks = 1 if case.one_input else world_size
                inputs = [random(*shape, seed=100 * number + r).requires_grad_() for r in range(ranks)]
                outputs = case.dense(inputs, world_size, dim)
                weights = [random(*y.shape, seed=7 + 100 * number + r) for r, y in enumerate(outputs)]
                torch.autograd.backward(outputs, weights)
                own, expected = (0 if one else rank for one in (case.one_input, case.one_output))

                x = inputs[own].detach().clone().requires_grad_()
                y = case.collective(x, group, dim=dim) if case.takes_dim else case.collective(x, group)
                close(y, outputs[expected], f"{case.name} along {dim}")
                backward(y, weights[expected])
                close(gradient_of(x), gradient_of(inputs[own]), f"gradient of {case.name} along {dim}")


@pytest.mark.parametrize("world_size", [2, 4])
def test_value_and_gradient_are_those_of_the_dense_function(world_size: int) -> None:
    run_distributed(compare_with_the_derivative, world_size)


def use_strided_tensors(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for case in CASES:
                for strided in (random(4, 8, seed=1, dtype=dtype).t(), random(8, 1, seed=1, dtype=dtype).expand(8, 4)):
                    results = []
                    for x in (strided.clone(memory_format=torch.contiguous_format), strided):
                        leaf = x.detach().requires_grad_()
                        y = case.collective(leaf, group, dim=0) if case.takes_dim else case.collective(leaf, group)
                        assert y.dtype == dtype
                        backward(y, random(*reversed(y.shape), seed=2, dtype=dtype).t())
                        results.append((y.detach(), leaf.grad))
                    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_tensors_need_not_be_contiguous() -> None:
    run_distributed(use_strided_tensors, 2)


def sum_halves(rank: int, world_size: int) -> list[float]:
    with connected(model=world_size) as topology:
        group = model_group(topology)
        # bfloat16 has steps of 2^-7 above 1: three quarters of one are lost if added one by one, and round up if not.
        part = torch.full((4,), 1.0 if rank == 0 else 2**-9, dtype=torch.bfloat16, requires_grad=True)
        reduced = reduce_from_model(part, group)
        scattered = scatter_sequence(part, group, dim=0)
        replicated = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
        backward(copy_to_model(replicated, group), part.detach())
        slices = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
        backward(gather_sequence(slices, group, dim=0), part.detach())
        return [t.detach()[0].item() for t in (reduced, scattered, gradient_of(replicated), gradient_of(slices))]


def test_half_precision_is_summed_in_float32() -> None:
    for sums in run_distributed(sum_halves, 4):
        assert sums == [1 + 2**-7] * 4


def leave_the_input_alone(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = torch.full((4, 4), float(rank + 1))
        for case in CASES:
            case.collective(x, topology.group(Axis.MODEL))
        assert x.eq(rank + 1).all()
        gradient = torch.ones(4, 4)
        leaf = torch.zeros(4, 4, requires_grad=True)
        backward(copy_to_model(leaf, topology.group(Axis.MODEL)), gradient)
        assert gradient.eq(1).all()


def test_inputs_and_incoming_gradients_keep_their_values() -> None:
    run_distributed(leave_the_input_alone, 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_axis_of_size_one_costs_nothing(case: Case) -> None:
    x = torch.ones(4, 4, requires_grad=True)
    assert case.collective(x, None) is x
