"""One rank of a training run under observation: every number of a step can be written down or compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from scaling.core.boxes import GlobalTensor
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.topology import Topology
from scaling.core.training.learner import Learner
from scaling.core.training.recipe import Recipe
from scaling.core.verify.deviation import Deviation, HeldBoxes
from scaling.core.verify.diagnosis import Replacement
from scaling.core.verify.shared_tensors import SharedTensors

Tensors = Literal["weights", "gradients"]


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """The results of a step, the same on every rank."""

    loss: float
    gradient_norm: float
    weight: float
    overflow: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@final
class Session:
    """A recipe trained in one layout, with access to all its numbers. Every method is collective: all ranks.

    A training's `Learner` takes the steps, so they are the steps of a real training.
    """

    def __init__(self, recipe: Recipe, config: TopologyConfig, topology: Topology) -> None:
        self.learner = Learner(recipe, config, topology)
        self.learner.optimizer.observer = self._keep_gradients
        self._gradients: list[GlobalTensor] = []
        self._initial = self._copied()
        self._before: list[Tensor] = self._initial

    def held_boxes(self) -> list[HeldBoxes]:
        """Return the boxes of the weights that this rank holds."""
        return [
            HeldBoxes(
                key=tensor.key, shape=tensor.shape, boxes=tuple(box for box, _ in tensor.parts), owned=tensor.owned
            )
            for tensor in self.tensors("weights")
        ]

    def tensors(self, which: Tensors) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of the present weights, or of the gradients of the last step's mean loss."""
        return self.learner.module.global_tensors() if which == "weights" else iter(self._gradients)

    def write(self, which: Tensors, directory: Path) -> None:
        """Write the tensors that this rank owns, for others to compare with."""
        SharedTensors(directory).write(self.tensors(which))

    def compare(self, which: Tensors, directory: Path) -> list[Deviation]:
        """Return the deviations of this rank's tensors from those written. Call after all writers have finished."""
        return SharedTensors(directory).compare(self.tensors(which), rank=self.learner.topology.rank)

    def step(self, step: int) -> StepNumbers:
        """Train on global batch `step`, counted from 1."""
        self._before = self._copied()
        self._seek(step)
        loss, report = self.learner.step(step)
        return StepNumbers(
            loss=float(loss.loss),
            gradient_norm=float(report.global_grad_norm),
            weight=float(loss.weight),
            overflow=bool(report.overflow),
            metrics={name: float(value) for name, value in loss.metrics().items()},
        )

    def evaluate(self) -> float | None:
        """Return the loss over the whole evaluation set; None without one."""
        loss = self.learner.evaluate()
        return None if loss is None else float(loss.loss)

    @torch.no_grad()
    def probe(self, step: int, replacements: Mapping[str, Replacement]) -> float:
        """Return the training loss of global batch `step` at the weights before the last step, with `replacements`.

        Parameters named in `replacements` are zero or have their initial values. The weights stay in this state, so
        only other probes can follow.
        """
        for (parameter, description), before, initial in zip(
            self.learner.module.parameters_with_meta(), self._before, self._initial, strict=True
        ):
            parameter.copy_(before)
            for piece in description.pieces:
                match replacements.get(piece.key):
                    case "zero":
                        piece.local(parameter).zero_()
                    case "initial":
                        piece.local(parameter).copy_(piece.local(initial))
        self._seek(step)
        return float(self.learner.training_loss(step).loss)

    def close(self) -> None:
        """Detach from the parameters and stop reading data."""
        self.learner.close()

    def _seek(self, step: int) -> None:
        self.learner.seek((step - 1) * self.learner.samples_per_step)

    def _keep_gradients(self, gradients: Iterator[GlobalTensor], factor: Tensor) -> None:
        self._gradients = [
            GlobalTensor(
                tensor.key,
                tensor.shape,
                [(box, values * factor.to(values.dtype)) for box, values in tensor.parts],
                tensor.owned,
            )
            for tensor in gradients
        ]

    def _copied(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter, _ in self.learner.module.parameters_with_meta()]
