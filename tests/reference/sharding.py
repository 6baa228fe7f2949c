"""Compare a layer cut over the model axis with a dense function of the whole weights: output and all gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.core.boxes import Box
from scaling.core.nn.init import Normal
from scaling.core.nn.init import fill as fill_described
from scaling.core.nn.parameter import ParameterMeta, annotate, named_parameters_with_meta
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.reference.compare import backward, close, gradient_of
from tests.reference.worlds import random

Weights = dict[str, Tensor]
Dense = Callable[[Weights, Tensor], Tensor]

SUM, SCATTER, GATHER = "allreduce_", "_reduce_scatter_base_", "_allgather_base_"
"""Messages, by their name in torch: the sum to all ranks, and its two halves under sequence parallelism."""

IN_SHARED_MEMORY = {"all_reduce_": SUM, "reduce_scatter_": SCATTER, "all_gather_": GATHER}
"""The same between ranks of one machine."""


class Messages(TorchDispatchMode):
    """Writes down the collectives that this rank takes part in, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.names.append(func._schema.name.removeprefix("c10d::"))
        elif func.namespace == "scaling_shared_memory":
            name = func._schema.name.removeprefix("scaling_shared_memory::")
            self.names.append(IN_SHARED_MEMORY.get(name, name))
        return func(*args, **(kwargs or {}))


def fill(module: nn.Module, *, seed: int = 1) -> None:
    """Give every parameter its name and normal values, biases and norms too: what is constant hides mistakes."""
    for name, parameter, description in named_parameters_with_meta(module):
        pieces = tuple(replace(piece, initializer=Normal(0.5)) for piece in description.pieces)
        annotate(parameter, replace(description, pieces=pieces).named(name))
    fill_described(module, seed=seed)


def assembled(local: Tensor, description: ParameterMeta, topology: Topology, *, summed: bool = False) -> Weights:
    """Return the global tensors made of all ranks' pieces; replicas must be equal, or are added up if `summed`."""
    own = [(piece, piece.local(local.detach()).clone()) for piece in description.pieces]
    rest = local.detach().clone()
    for piece in description.pieces:
        piece.local(rest).zero_()
    assert not rest.any(), f"{description.name}: the padding is not zero"
    held = [own]
    if (group := topology.group(Axis.MODEL)) is not None:
        held = held * group.size()
        dist.all_gather_object(held, own, group=group)
    whole: Weights = {}
    filled: set[tuple[str, Box]] = set()
    for piece, values in (entry for entries in held for entry in entries):
        tensor = whole.setdefault(piece.key, torch.zeros(piece.shape, dtype=local.dtype))
        target = tensor[tuple(slice(a, b) for a, b in zip(piece.box.offset, piece.box.stop, strict=True))]
        if (piece.key, piece.box) in filled and values.numel() and not summed:
            assert torch.equal(target, values), f"{piece.key}: ranks hold different values of one part"
        target.copy_(target + values if summed else values)
        filled.add((piece.key, piece.box))
    return whole


def whole_weights(module: nn.Module, topology: Topology) -> Weights:
    """Return the global weights by name, as leaves. Collective: the model axis."""
    return {
        key: whole.requires_grad_()
        for _, parameter, description in named_parameters_with_meta(module)
        for key, whole in assembled(parameter, description, topology).items()
    }


def whole_gradients(module: nn.Module, topology: Topology) -> Weights:
    """Return the global gradients by name, after the sums their descriptions ask for. Collective: the model axis."""
    found: Weights = {}
    for _, parameter, description in named_parameters_with_meta(module):
        summed = description.placements.on(Axis.MODEL).gradient_in_parts
        found |= assembled(gradient_of(parameter), description, topology, summed=summed)
    return found


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
) -> list[str]:
    """Assert that `layer` computes `dense`: the output, the gradients of the input and of every weight.

    `x` is the whole input, floating point or ids; `cut_input` and `cut_output` say along which dimension ranks hold
    slices. Returns the messages of the layer's forward and backward pass, in order. Collective: the model axis.
    """
    fill(layer)
    weights = whole_weights(layer, topology)
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    expected = dense(weights, x)
    gradient = random(*expected.shape, seed=99).to(expected.dtype)
    backward(expected, gradient)

    local = own_slice(x, topology, cut_input).detach().clone().requires_grad_(x.is_floating_point())
    messages = Messages()
    with messages:
        output = layer(local, *arguments)
        backward(output, own_slice(gradient, topology, cut_output).contiguous())
    close(output, own_slice(expected, topology, cut_output), f"{what} output")
    if x.is_floating_point():
        close(gradient_of(local), own_slice(gradient_of(x), topology, cut_input), f"{what} gradient of the input")
    for name, found in whole_gradients(layer, topology).items():
        close(found, gradient_of(weights[name]), f"{what} gradient of {name}")
    return messages.names
