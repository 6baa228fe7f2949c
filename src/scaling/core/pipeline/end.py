"""The end of the pipe, which takes the outputs of the last stage: a loss, or a collector."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, final

import torch
from torch import Tensor

from scaling.core.errors import ScheduleError
from scaling.core.pipeline.loss import LossFunction, LossOutput, StepLoss
from scaling.core.topology.topology import Topology

Start: TypeAlias = tuple[Tensor, Tensor]
"""The start of the backward pass of a micro-batch: the tensor to differentiate, and its gradient."""


class End(Protocol):
    """Takes the outputs of the last stage, micro-batch by micro-batch. Ranks without the last stage never call it."""

    def take(self, output: Any, targets: Any) -> Start | None:
        """Take the output for one micro-batch, and return the start of its backward pass; None if there is none."""


@final
class LossEnd:
    """Sums the losses of a step, and starts the backward passes from them."""

    def __init__(self, loss_function: LossFunction, gradient_scale: Tensor, topology: Topology) -> None:
        self.total = StepLoss(topology)
        """The sums of this rank, not yet reduced over ranks."""
        self._loss_function = loss_function
        self._scale = gradient_scale

    def take(self, output: Any, targets: Any) -> Start:
        """Add the loss of one micro-batch."""
        found = self._loss_function(output, targets)
        if not isinstance(found, LossOutput):
            raise ScheduleError(
                f"the loss function returned a {type(found).__name__}; it must return LossOutput(loss_sum, weight)"
            )
        self.total.add(found)
        loss = found.loss_sum
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ScheduleError(
                "the loss depends on no parameter that is trained; look for what detaches it from the output of "
                "the last layer, or for groups of parameters that leave all of them out"
            )
        return loss, self._scale.to(loss.dtype)


@final
class Collector:
    """Keeps the outputs of a forward pass, in the order of the micro-batches."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def take(self, output: Any, targets: Any) -> None:
        """Keep the output for one micro-batch."""
        self.outputs.append(output)
