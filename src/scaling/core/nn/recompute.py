"""Activation checkpointing: keep a segment's input, run the segment again in the backward pass (arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scaling.core.collectives import tree
from scaling.core.errors import ScheduleError
from scaling.core.topology.topology import Topology


def recomputed(function: Callable[[Any], Any], x: Any, topology: Topology) -> Any:
    """Return `function(x)`, keeping for the backward pass, where there will be one, only `x`.

    The random streams are replayed for the second run and then go on as if it had not happened; keyed dropout needs no
    such care. Collectives inside `function` run twice: on all ranks of their group alike. `ScheduleError` if `function`
    changes `x`, since the second run would then start from something else.
    """
    if not torch.is_grad_enabled():
        return function(x)

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), topology.rng.replaying(topology.rng.state())

    kept = [(path, tensor, tensor._version) for path, tensor in tree.flatten(x)]
    y = checkpoint(function, x, use_reentrant=False, context_fn=contexts)
    for path, tensor, version in kept:
        if tensor._version != version:
            layer = type(function).__name__ if isinstance(function, nn.Module) else "the pipeline stage"
            raise ScheduleError(
                f"{layer} changes its input{path} in place, so running it again for the backward pass would give "
                "something else; let it make a new tensor (x * 2 instead of x.mul_(2)), or set "
                "topology.activation_checkpointing_type to disabled"
            )
    return y
