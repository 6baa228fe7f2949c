"""A backward pass that begins with given gradients has the numbers of PyTorch's own, and imports nothing large."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.pipeline.backward import backward
from tests.transformer.small import command_environment


def outputs_of(weights: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Return tensors of these shapes that share a part of their graph."""
    shared = (weights * weights).sin()
    return [(shared * (index + 1)).sum(0).tanh() + shared[0].new_ones(shape) for index, shape in enumerate(shapes)]


@given(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4))
def test_gradients_are_those_of_torch_bit_by_bit(shapes: list[tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(len(shapes))
    given_gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    weights = [torch.randn(3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    backward(outputs_of(weights[0], shapes), given_gradients)
    torch.autograd.backward(outputs_of(weights[1], shapes), given_gradients)
    assert weights[0].grad is not None
    assert weights[1].grad is not None
    assert torch.equal(weights[0].grad, weights[1].grad)


def test_gradients_of_leaves_add_up() -> None:
    weight = torch.ones(2, requires_grad=True)
    for _ in range(2):
        backward([weight * 3], [torch.tensor([1.0, 2.0])])
    assert weight.grad is not None
    assert weight.grad.tolist() == [6.0, 12.0]


def test_nothing_to_differentiate_is_no_error() -> None:
    backward([], [])


def test_a_gradient_that_cannot_be_of_this_tensor_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        backward([torch.ones(2, 3, requires_grad=True) * 2], [torch.ones(4)])


def test_sympy_is_not_imported() -> None:
    program = (
        "import sys, torch\nfrom scaling.core.pipeline.backward import backward\n"
        "weight = torch.ones(2, requires_grad=True)\nbackward([weight * 2], [torch.ones(2)])\n"
        "print('sympy' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=command_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"
