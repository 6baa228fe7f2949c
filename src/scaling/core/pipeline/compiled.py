"""Compiled layers: PyTorch's compiler fuses the operations between the matrix products of a layer's training step.

Each layer is compiled by itself, so that layers of the same kind share the code compiled for the first of them, and
pipeline, recomputation and communication are around compiled code as around any other. Where the compiler cannot
follow (collectives, random streams) a layer is compiled in pieces.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, final, runtime_checkable

import torch
from torch import nn

from scaling.core.topology.config import ActivationCheckpointingType, Compile, TopologyConfig

_log = logging.getLogger(__name__)

KINDS_OF_LAYERS: Final = 64
"""How many versions of a layer's code are compiled before PyTorch leaves further ones uncompiled, and says so."""

_FALSE_ALARMS: Final = (
    (UserWarning, "The .grad attribute of a Tensor that is not a leaf"),  # only the compiler looks at it
    (DeprecationWarning, ".*torch.jit"),  # of the compiler's own imports
    (DeprecationWarning, ".*should not be instantiated"),  # which the compiler itself does
)

Run = Callable[[Any], Any]
"""Computes the output of a layer or a stage from its input."""


@final
@dataclass(frozen=True)
class CompileChoice:
    """Whether layers are compiled, and why."""

    on: bool
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'} ({self.why})"


def compile_choice(config: TopologyConfig, device: torch.device) -> CompileChoice:
    """Return whether a configuration wants layers compiled on a type of device. Pure: the same on all ranks."""
    if config.activation_checkpointing_type is ActivationCheckpointingType.SELECTIVE:
        return CompileChoice(False, "selective checkpointing looks at single operations")
    match config.compile:
        case Compile.OFF:
            return CompileChoice(False, "topology.compile is off")
        case Compile.AUTO if device.type == "cpu":
            return CompileChoice(False, "auto: on a CPU compiling takes longer than it saves in a short run")
    return CompileChoice(
        True, "the first step takes up to a minute longer; later starts find the result in PyTorch's cache"
    )


def compiler_problem(device: torch.device) -> str | None:
    """Return why nothing can be compiled for a device, in one line (a C++ compiler or Triton is missing); else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own imports
            torch.compile(_probe)(torch.ones(16, device=device))
    except Exception as error:  # each missing tool has its own kind of error
        return first_line(error)
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1.0


def first_line(error: BaseException) -> str:
    """Return the type of an error and its first line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@runtime_checkable
class PartlyUncompiled(Protocol):
    """A module that keeps state between calls, and so must leave some functions out of compiled code."""

    def leave_uncompiled(self, disable: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace these functions, from now on, by the results of `disable`."""


@final
class Compiled:
    """A layer that runs compiled where there will be a backward pass, and uncompiled otherwise.

    Evaluation and generation have many shapes and little to fuse. Code is compiled when first called, along with that
    of the backward pass; if that fails, the layer runs uncompiled from then on, and one log line says why.
    """

    def __init__(self, layer: nn.Module) -> None:
        import torch._dynamo.config as dynamo  # here, because it takes seconds that only compiled runs should pay
        import torch._functorch.config as functorch

        dynamo.recompile_limit = max(dynamo.recompile_limit, KINDS_OF_LAYERS)
        functorch.force_non_lazy_backward_lowering = True  # so that a failure comes where it is handled
        for category, message in _FALSE_ALARMS:
            warnings.filterwarnings("ignore", message, category)
        for part in layer.modules():
            if isinstance(part, PartlyUncompiled):
                part.leave_uncompiled(torch.compiler.disable)
        self._layer = layer
        self._compiled: Run | None = torch.compile(layer, dynamic=False)

    def __call__(self, x: Any) -> Any:
        """Return the layer's output."""
        if self._compiled is None or not torch.is_grad_enabled():
            return self._layer(x)
        try:
            return self._compiled(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._compiled = None
            name = type(self._layer).__name__
            _log.warning("a layer (%s) could not be compiled and runs as it is: %s", name, first_line(error))
        return self._layer(x)


def compiled(run: Run) -> Run:
    """Return a function that runs a layer compiled: the layer's own forward, with nothing around it yet.

    A layer whose attribute `compiles` is False is left alone: there is nothing to fuse in it.
    """
    if not isinstance(run, nn.Module) or not getattr(run, "compiles", True):
        return run
    return Compiled(run)
