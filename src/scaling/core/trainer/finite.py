"""The reaction to losses, gradients or weights that are not finite; checked only where the trainer waits anyway."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Final, final

import torch
from torch import Tensor

from scaling.core.boxes import GlobalTensor
from scaling.core.collectives import ops
from scaling.core.config.plain_words import first_of
from scaling.core.errors import DataRefusedError
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.topology.topology import Topology
from scaling.core.trainer.origin import LogOnce
from scaling.core.training.learner import Learner

_SHOWN: Final = 5
"""How many tensors an error names."""
_REMEDY: Final = "lower the learning rate or look at the data of these steps"


@final
class FiniteWatch:
    """A counter, on the device, of steps in a row that were not finite, and the reaction where it is read.

    A gradient that overflows while the loss scale can still be lowered is part of how loss scaling works, and does not
    count. All errors are raised on all ranks.
    """

    def __init__(self, learner: Learner, *, patience: int, log_once: LogOnce) -> None:
        self._learner = learner
        self._scaler = learner.optimizer.loss_scaler
        self._patience = patience
        self._log_once = log_once
        self._last_step: str | None = None
        self._last_evaluation: str | None = None
        self.streaks = torch.zeros(2, dtype=torch.float64, device=learner.topology.device)
        """Steps in a row whose gradients, and whose loss, were not finite; on the device."""

    def note(self, loss: Tensor, report: StepReport) -> None:
        """Count a step. The host waits for nothing."""
        gradients = report.overflow
        if self._scaler.enabled:
            gradients = gradients * (report.loss_scale <= self._scaler.config.min_scale)
        bad = torch.stack([gradients, (~torch.isfinite(loss)).to(torch.float64)])
        self.streaks = (self.streaks + 1) * bad

    def judge(self, gradients: float, losses: float, *, step: int) -> None:
        """Raise a `DataRefusedError` where the streaks, which have been read, are too long.

        The steps themselves are reported as events, on the basis of their metrics.
        """
        floor = ""
        if self._scaler.enabled:
            floor = f" although optimizer.loss_scaler.min_scale ({self._scaler.config.min_scale:g}) was reached"
        for what, streak, note in (
            ("gradients", gradients, f"{floor} (their updates were skipped)"),
            ("losses", losses, ""),
        ):
            if streak > self._patience:
                raise DataRefusedError(
                    f"the {what} of {int(streak)} steps in a row, up to step {step}, were not finite{note}, more than "
                    f"trainer.max_consecutive_nonfinite_steps ({self._patience}) allows; {_REMEDY}"
                )
        self._last_step = None
        if gradients or losses:
            self._last_step = f"{'the gradients were' if gradients else 'the loss was'} not finite in step {step}"

    def judge_evaluation(self, loss: float, *, step: int) -> None:
        """React to the loss of an evaluation. Collective where it is not finite: all ranks."""
        self._last_evaluation = None
        if not math.isfinite(loss):
            self.require_weights(step)
            self._last_evaluation = f"the evaluation loss is {loss} at step {step}"
            self._log_once(logging.WARNING, "%s although the weights are finite", self._last_evaluation)

    def require_weights(self, step: int) -> None:
        """Refuse to continue with, or to save, weights and moments that are not finite. Collective: all ranks."""
        then = (
            f"the run ends at step {step}, which is not saved; earlier checkpoints are untouched. Lower the learning "
            "rate, or look at optimizer.eps and at the data"
        )
        require_finite(self._learner.global_tensors(), self._learner.topology, then=then)

    def require_good_end(self, step: int) -> None:
        """Refuse to end a run as a success where its last numbers were not finite. Collective: all ranks."""
        self.require_weights(step)
        for what in (self._last_step, self._last_evaluation):
            if what is not None:
                raise DataRefusedError(f"{what}, and the run has ended with that; {_REMEDY}")
        if self._learner.optimizer.state()["updates"] == 0:
            text = "no step has changed the weights: gradients overflowed in all of them; %s"
            self._log_once(logging.WARNING, text, "train longer, or lower optimizer.loss_scaler.initial_scale")


def require_finite(tensors: Iterable[GlobalTensor], topology: Topology, *, then: str) -> None:
    """Raise `DataRefusedError` with the names of tensors that are not finite, and with `then`. Collective: all ranks.

    One number is all-reduced over the world; the host waits for it. Names are exchanged only where there is something
    to report.
    """
    held: list[tuple[str, Tensor]] = [
        (tensor.key, torch.linalg.vector_norm(part, ord=torch.inf).to(torch.float64))  # nan where any element is
        for tensor in tensors
        for _, part in tensor.parts
        if part.is_floating_point() and part.numel()
    ]
    largest = torch.stack([norm for _, norm in held]) if held else torch.zeros(1, device=topology.device)
    bad = ~torch.isfinite(largest)
    if not ops.all_reduce(bad.any().to(torch.float64), topology.world, maximum=True).tolist():
        return
    mine = sorted({name for (name, _), is_bad in zip(held, bad.tolist(), strict=False) if is_bad})
    names: list[str] = topology.agree("tensors that are not finite", mine, _joined)
    raise DataRefusedError(f"not finite: {first_of(names, _SHOWN, what='tensors')}; {then}")


def _joined(reports: list[list[str]]) -> list[str]:
    return sorted(set().union(*reports))
