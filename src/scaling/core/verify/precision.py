"""A recipe in another precision: its parameters and its floating-point inputs, converted to one type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scaling.core.collectives import tree
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossFunction, LossOutput
from scaling.core.topology.topology import Topology
from scaling.core.training.recipe import Recipe


def in_precision(recipe: Recipe, precision: str) -> Recipe:
    """Return the recipe with parameters, floating-point inputs and targets of type `precision`, such as float64."""
    dtype: torch.dtype = getattr(torch, precision)
    return replace(
        recipe, layers=partial(_layers, recipe.layers, dtype=dtype), loss=partial(_loss, recipe.loss, dtype=dtype)
    )


def _layers(
    layers: Callable[[Topology], Sequence[LayerSpec]], topology: Topology, *, dtype: torch.dtype
) -> list[LayerSpec]:
    first, *others = (spec.then(partial(_converted, dtype=dtype)) for spec in layers(topology))
    return [first.then(partial(_fed, dtype=dtype)), *others]


def _converted(module: nn.Module, *, dtype: torch.dtype) -> nn.Module:
    return module.to(dtype)


def _fed(module: nn.Module, *, dtype: torch.dtype) -> nn.Module:
    """Convert a layer's inputs to `dtype` by a hook: a wrapper would rename the layer's parameters."""
    module.register_forward_pre_hook(lambda _, arguments: _in(dtype, arguments))
    return module


def _loss(loss: Callable[[Topology], LossFunction], topology: Topology, *, dtype: torch.dtype) -> LossFunction:
    function = loss(topology)

    def converting(output: Any, targets: Any) -> LossOutput:
        return function(output, _in(dtype, targets))

    return converting


def _in(dtype: torch.dtype, values: Any) -> Any:
    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return tree.map_tensors(converted, values)
