"""Layers that share an input, computed as one product in models that are not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from scaling.core.nn.linear import ColumnParallelLinear, linear

FEW = 4
"""For up to this many tokens, reading the weights is most of the work. With more, separate outputs are worth more."""


@final
class JoinedLayers:
    """Column-parallel layers with one input whose weights lie one after the other in one tensor.

    The layers keep their parameters, names and values: the parameters become parts of that tensor, with no memory of
    their own, so whatever is written into a parameter is part of the product. Make this object before anything else
    keeps views of the parameters.
    """

    def __init__(self, layers: Sequence[ColumnParallelLinear]) -> None:
        self.sizes = [size for layer in layers for size in layer.output_sizes]
        """Local features of each output, in order."""
        self._layers = tuple(layers)
        self._weights = _Stacked([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._biases = _Stacked(biases) if biases else None
        self._possible = len(biases) in (0, len(layers))

    def __call__(self, entered: Tensor) -> Tensor | None:
        """Return the outputs, one after the other, for an input that has been through `enter_model_parallel` already.

        None where the layers have to be called instead: a CPU has many tokens, only some layers have a bias, a gradient
        is wanted, an edit is active, a layer's `product` is not `linear`, or a weight has been replaced.
        """
        if entered.shape[:-1].numel() > FEW and entered.device.type == "cpu":
            return None
        if not self._possible or torch.is_grad_enabled() or not self._weights.stands:
            return None
        for layer in self._layers:
            if layer.product is not linear or any(edit.active for edit in layer.edits):
                return None
        bias = None if self._biases is None else self._biases.values()
        return linear(entered, self._weights.whole, bias)


@final
class _Stacked:
    """Parameters, of the same shape except for their rows, that become parts of one tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.whole = _joined(parameters)
        self._parts = [(parameter, parameter.data_ptr()) for parameter in parameters]

    @property
    def stands(self) -> bool:
        """Whether all parameters are still parts of the tensor."""
        return all(parameter.data_ptr() == pointer for parameter, pointer in self._parts)

    def values(self) -> Tensor:
        """Return the present values of the parameters."""
        return self.whole if self.stands else torch.cat([parameter.detach() for parameter, _ in self._parts])


def _joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Make parameters, of the same shape except for their rows, parts of one tensor, and return it.

    On a CPU a weight that has more rows than columns is stored column by column: the product with a single row, which
    is limited by reading the weight, is up to 1.6 times as fast; with many rows it is as fast as otherwise.
    """
    first = parameters[0]
    rows, columns = sum(len(parameter) for parameter in parameters), tuple(first.shape[1:])
    with torch.inference_mode(mode=False):
        if columns and rows > columns[0] and first.device.type == "cpu":
            whole = torch.empty((*columns, rows), dtype=first.dtype, device=first.device).t()
        else:
            whole = torch.empty((rows, *columns), dtype=first.dtype, device=first.device)
        for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
            part.copy_(parameter.detach())
            parameter.data = part
    return whole


def join_layers(module: nn.Module) -> None:
    """Join the layers of all modules within that have layers to join. For a model that is not trained."""
    for part in module.modules():
        if isinstance(part, Joins):
            part.join()


class Joins(nn.Module):
    """A module with layers that can be joined."""

    joined: JoinedLayers | None = None

    def join(self) -> None:
        """Compute the layers as one product from now on, where that is possible."""
        raise NotImplementedError
