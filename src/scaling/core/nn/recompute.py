"""Activation checkpointing: keep a segment's input, run the segment again in the backward pass (arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scaling.core.collectives import tree
from scaling.core.errors import ScheduleError
from scaling.core.nn.selective import FirstRun, Policy, selective_contexts
from scaling.core.topology.topology import Topology


def recomputed(function: Callable[[Any], Any], x: Any, topology: Topology, *, selective: Policy | None = None) -> Any:
    """Return `function(x)`, keeping only `x` for the backward pass, if there will be one.

    The random streams are replayed for the second run and then continue as if it had not happened; keyed dropout needs
    no such care. Collectives inside `function` run twice, on all ranks of their group. `ScheduleError` if `function`
    changes `x`, since the second run would then start from other values.

    With `selective` the results of some operations, all collectives among them, are kept as well, and not computed
    again.
    """
    if not torch.is_grad_enabled():
        return function(x)

    run: Callable[[Any], Any] = function
    first: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    second: contextlib.AbstractContextManager[Any] = topology.rng.replaying(topology.rng.state())
    if selective is not None:
        noting, handing_out = selective_contexts(selective)
        run, first, second = partial(_parted, function, noting), noting, _Both(second, handing_out)
    kept = [(path, tensor, tensor._version) for path, tensor in tree.flatten(x)]
    y = checkpoint(run, x, use_reentrant=False, context_fn=lambda: (first, second))
    for path, tensor, version in kept:
        if tensor._version != version:
            layer = type(function).__name__ if isinstance(function, nn.Module) else "the pipeline stage"
            raise ScheduleError(
                f"{layer} changes its input{path} in place, so running it again for the backward pass would give "
                "something else; let it make a new tensor (x * 2 instead of x.mul_(2)), or set "
                "topology.activation_checkpointing_type to disabled"
            )
    return y


def _parted(function: Callable[[Any], Any], noting: FirstRun, x: Any) -> Any:
    y = function(x)
    noting.part_from(tree.tensors_of(y))  # the last layer's output need not be a tree
    return y


@final
class _Both(contextlib.AbstractContextManager[None]):
    """Two contexts, the second within the first; may be entered again, if both may."""

    def __init__(
        self, outer: contextlib.AbstractContextManager[Any], inner: contextlib.AbstractContextManager[Any]
    ) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)
