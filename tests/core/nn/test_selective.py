"""Selective checkpointing: the same bits, what is dear computed once, and less kept than without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core.collectives.autograd import reduce_from_model, scatter_sequence
from scaling.core.errors import ScheduleError
from scaling.core.nn.recompute import recomputed
from scaling.core.nn.selective import KEPT, Policy, kept_by_selective
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.core.nn.test_recompute import InPlace, Noisy
from tests.distributed import run_distributed
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import connected, random


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types there
        self.calls: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def again(function: Callable[[Any], Any], x: Any, topology: Topology | None = None) -> Any:
    return recomputed(function, x, topology or Topology.single(), selective=Policy())


def gradients(function: Callable[[Tensor], Tensor], *, selective: bool) -> list[Tensor]:
    torch.manual_seed(5)
    x = random(2, 6, 8, seed=1).requires_grad_()
    y = again(function, x) if selective else function(x)
    backward((y * y).sum())
    return [y.detach(), gradient_of(x)]


WEIGHT = random(8, 8, seed=2)


def changed_after(x: Tensor) -> Tensor:
    return F.linear(x, WEIGHT).mul_(2).sin().exp()


def read_then_changed(x: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    z = y.detach().sin()
    y.add_(1)
    return z * y.exp()


def returned_and_used(x: Tensor) -> Tensor:
    y = F.linear(x, WEIGHT)
    return torch.cat([y, y.sin() * y])


def attention_with_dropout(x: Tensor) -> Tensor:
    q = F.linear(x, WEIGHT).unsqueeze(1)
    y = F.scaled_dot_product_attention(q, q, q, dropout_p=0.4, is_causal=True)
    return F.dropout(y.tanh(), 0.5).exp()


def attention_alone(x: Tensor) -> Tensor:
    q = x.unsqueeze(1).sin()
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def added_and_normed(x: Tensor) -> Tensor:
    return F.layer_norm(x + F.linear(x.sin(), WEIGHT), (8,))


@pytest.mark.parametrize(
    "function",
    [changed_after, read_then_changed, returned_and_used, attention_with_dropout, attention_alone, added_and_normed],
)
def test_no_bit_changes(function: Callable[[Tensor], Tensor]) -> None:
    plain, found = gradients(function, selective=False), gradients(function, selective=True)
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def test_a_result_that_leaves_the_layer_may_be_changed_outside() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.linear(x.sin(), WEIGHT)
        return y.detach(), (y * 2).cos()

    found = []
    for run in (function, lambda x: again(function, x)):
        x = random(2, 8, seed=1).requires_grad_()
        y, z = run(x)
        y.zero_()
        backward(z.sum())
        found.append(gradient_of(x))
    assert torch.equal(*found)


def test_dropout_of_every_kind_is_drawn_again_and_no_later_draw_changes() -> None:
    found = []
    for selective in (False, True):
        topology = Topology.single()
        topology.rng.seed(3)
        torch.manual_seed(4)
        layer = Noisy(topology)
        x = random(2, 4, 8, seed=1).requires_grad_()
        tree: Any = {"x": x, "samples": torch.tensor([6, 2])}
        y = (again(layer, tree, topology) if selective else layer(tree))["x"]
        backward(y.sum())
        with topology.rng.stream("sharded"):
            drawn = torch.rand(2)
        found.append([y.detach(), gradient_of(x), drawn, torch.rand(2), *map(gradient_of, layer.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_products_and_attention_are_computed_once_and_the_rest_twice() -> None:
    def function(x: Tensor) -> Tensor:
        q = F.layer_norm(F.linear(x.sin(), WEIGHT), (8,)).unsqueeze(1)
        return F.linear(F.scaled_dot_product_attention(q, q, q).exp(), WEIGHT)

    x = random(2, 6, 8, seed=1).requires_grad_()
    with Counting() as counting:
        y = again(function, x)
        forward = len(counting.calls)
        backward(y.sum())
    assert [name for name in counting.calls[:forward] if name in KEPT] == [
        "aten::mm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::mm",
    ]
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" not in counting.calls[forward:]
    assert counting.calls[forward:].count("aten::mm") == 2  # the gradients of the input, none of the products
    assert {"aten::sin", "aten::exp", "aten::native_layer_norm"} <= set(counting.calls[forward:])


def test_a_backward_pass_may_come_twice() -> None:
    x = random(2, 8, seed=1).requires_grad_()
    y = again(lambda x: F.linear(F.linear(x.sin(), WEIGHT).sin(), WEIGHT).exp(), x).sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


def test_a_layer_that_changes_its_input_is_refused() -> None:
    inputs = {"x": torch.ones(3, requires_grad=True) * 2, "ids": torch.arange(3)}
    with pytest.raises(ScheduleError, match=r"InPlace changes its input\['x'\] in place"):
        again(InPlace("x"), inputs)


def test_a_layer_that_does_something_else_the_second_time_is_refused() -> None:
    runs: list[int] = []

    def function(x: Tensor) -> Tensor:
        runs.append(1)
        y = F.linear(x, WEIGHT).sin() if len(runs) == 1 else torch.bmm(x[None], WEIGHT[None])[0].sin()
        return y.exp()

    y = again(function, random(2, 8, seed=1).requires_grad_())
    with pytest.raises(ScheduleError, match=r"computes aten.bmm.default where it computed aten.mm.default"):
        backward(y.sum())


def summed(rank: int, world_size: int) -> tuple[int, int, bool]:
    with connected(model=world_size) as topology:
        return summed_in(topology, rank)


def summed_in(topology: Topology, rank: int) -> tuple[int, int, bool]:
    group = topology.group(Axis.MODEL)

    def function(x: Tensor) -> Tensor:
        y = reduce_from_model(F.linear(x.sin(), WEIGHT), group)
        z = scatter_sequence(F.linear(y.sin(), WEIGHT), group)
        return z.exp() + z

    found, counts = [], []
    for selective in (False, True):
        x = random(2, 4, 8, seed=1 + rank).requires_grad_()
        with Counting() as counting:
            y = again(function, x, topology) if selective else function(x)
            backward(y.sum())
        counts.append(sum(name.startswith(("c10d::", "scaling_shared_memory::")) for name in counting.calls))
        found.append((y.detach(), gradient_of(x)))
    return counts[0], counts[1], all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_no_collective_runs_twice() -> None:
    for plain, selective, equal in run_distributed(summed, 2):
        assert plain == selective > 0
        assert equal


def test_what_is_kept_is_told_in_one_line() -> None:
    line = kept_by_selective()
    assert "\n" not in line
    assert "products: mm, addmm" in line
