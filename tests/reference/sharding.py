"""Compare a layer cut over the model axis with a dense function of the whole weights: output and all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaling.core.nn.init import Normal, initialize
from scaling.core.nn.parameter import ParameterMeta, Shard, named_parameters_with_meta, update_meta
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import random

Weights = dict[str, Tensor]
Dense = Callable[[Weights, Tensor], Tensor]


def fill(module: nn.Module, *, seed: int = 1) -> None:
    """Give every parameter its name and normal values, biases and norms too: what is constant hides mistakes."""
    for name, parameter, _ in named_parameters_with_meta(module):
        update_meta(parameter, key=name, initializer=Normal(0.5))
        initialize(parameter, seed=seed)


def assembled(local: Tensor, description: ParameterMeta, topology: Topology, *, summed: bool = False) -> Tensor:
    """Return the global tensor made of all model ranks' parts; replicas must be equal, or are added up if `summed`."""
    pieces: list[tuple[Shard | None, Tensor]] = [(description.shard, local.detach())]
    if (group := topology.group(Axis.MODEL)) is not None:
        pieces = pieces * group.size()
        dist.all_gather_object(pieces, (description.shard, local.detach()), group=group)
    whole = torch.zeros(description.global_shape, dtype=local.dtype)
    filled: set[int] = set()
    for shard, piece in pieces:
        dim, offset, length = (0, 0, whole.shape[0]) if shard is None else (shard.dim, shard.offset, shard.length)
        target, values = whole.narrow(dim, offset, length), piece.narrow(dim, 0, length)
        if offset in filled and length and not summed:
            assert torch.equal(target, values), f"{description.key}: ranks hold different values of one part"
        target.copy_(target + values if summed else values)
        filled.add(offset)
        padding = piece.narrow(dim, length, piece.shape[dim] - length)
        assert not padding.any(), f"{description.key}: the padding is not zero"
    return whole


def whole_weights(module: nn.Module, topology: Topology) -> Weights:
    """Return the global weights by name, as leaves. Collective: the model axis."""
    return {
        name: assembled(parameter, description, topology).requires_grad_()
        for name, parameter, description in named_parameters_with_meta(module)
    }


def whole_gradients(module: nn.Module, topology: Topology) -> Weights:
    """Return the global gradients by name, after the sums their descriptions ask for. Collective: the model axis."""
    return {
        name: assembled(gradient_of(parameter), description, topology, summed=description.sum_grad_over_model)
        for name, parameter, description in named_parameters_with_meta(module)
    }


def own_slice(whole: Tensor, topology: Topology, dim: int | None) -> Tensor:
    """Return this model rank's slice along `dim`; None = everything."""
    return whole if dim is None else whole.chunk(topology.size(Axis.MODEL), dim)[topology.index(Axis.MODEL)]


def compare_layer(
    layer: nn.Module,
    dense: Dense,
    x: Tensor,
    topology: Topology,
    *arguments: Any,
    cut_input: int | None = None,
    cut_output: int | None = None,
    what: str = "",
) -> None:
    """Assert that `layer` computes `dense`: the output, the gradients of the input and of every weight.

    `x` is the whole input, floating point or ids; `cut_input` and `cut_output` say along which dimension ranks hold
    slices. Collective: the model axis.
    """
    fill(layer)
    weights = whole_weights(layer, topology)
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    expected = dense(weights, x)
    gradient = random(*expected.shape, seed=99).to(expected.dtype)
    backward(expected, gradient)

    local = own_slice(x, topology, cut_input).detach().clone().requires_grad_(x.is_floating_point())
    output = layer(local, *arguments)
    close(output, own_slice(expected, topology, cut_output), f"{what} output")
    backward(output, own_slice(gradient, topology, cut_output).contiguous())
    if x.is_floating_point():
        close(gradient_of(local), own_slice(gradient_of(x), topology, cut_input), f"{what} gradient of the input")
    for name, found in whole_gradients(layer, topology).items():
        close(found, gradient_of(weights[name]), f"{what} gradient of {name}")
