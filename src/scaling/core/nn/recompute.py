"""Activation checkpointing: keep a segment's input, run the segment again in the backward pass (arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from scaling.core.topology.topology import Topology


def recomputed(function: Callable[[Any], Any], x: Any, topology: Topology) -> Any:
    """Return `function(x)`, keeping for the backward pass only `x`.

    The random streams are replayed for the second run and then go on as if it had not happened; keyed dropout needs no
    such care. Collectives inside `function` run twice: on all ranks of their group alike.
    """

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), topology.rng.replaying(topology.rng.state())

    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)
