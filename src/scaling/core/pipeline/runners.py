"""Runners: how layers and stages are run, apart from what they compute.

A runner wraps the forward pass of a layer or of a whole stage once the parameters have their names and values, and is
never in the module tree: names, initial bits and checkpoints cannot depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

from scaling.core.nn.recompute import recomputed
from scaling.core.nn.selective import Policy
from scaling.core.pipeline.compiled import Run, compiled
from scaling.core.topology.config import ActivationCheckpointingType, TopologyConfig
from scaling.core.topology.topology import Topology

Runner = Callable[[Run], Run]
"""Takes a function that runs a layer (the layer itself, or an inner runner's), and returns one that wraps it."""


@dataclass(frozen=True)
class Runners:
    """The runners of a model, from the innermost to the outermost. Without any, layers are simply called."""

    layer: tuple[Runner, ...] = ()
    """Around each layer."""
    stage: tuple[Runner, ...] = ()
    """Around the layers of a stage together."""
    differentiated: tuple[Runner, ...] = ()
    """Around those layers of a stage together that have a backward pass; without gradients around all of them."""


def runners_of(config: TopologyConfig, topology: Topology, *, compile_layers: bool = False) -> Runners:
    """Return the runners a configuration asks for, around compiled or uncompiled layers."""
    innermost: tuple[Runner, ...] = (compiled,) if compile_layers else ()

    def recomputing(run: Run) -> Run:
        return partial(recomputed, run, topology=topology)

    match config.activation_checkpointing_type:
        case ActivationCheckpointingType.DISABLED:
            return Runners(layer=innermost)
        case ActivationCheckpointingType.EVERY_LAYER:
            return Runners(layer=(*innermost, recomputing))
        case ActivationCheckpointingType.SELECTIVE:
            policy = Policy()
            return Runners(layer=(lambda run: partial(recomputed, run, topology=topology, selective=policy),))
        case ActivationCheckpointingType.EVERY_PIPE_STAGE:
            return Runners(layer=innermost, differentiated=(recomputing,))


def surround(run: Run, runners: Sequence[Runner]) -> Run:
    """Return `run` with the runners around it."""
    return reduce(lambda inner, runner: runner(inner), runners, run)
