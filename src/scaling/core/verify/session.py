"""One rank of a training run that is watched: every number a step produces can be written down or compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from scaling.core.boxes import GlobalTensor
from scaling.core.collectives import tree
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.optimizer.config import AdamWConfig, OptimizerConfig
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup, assign
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossFunction, StepLoss
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.rng import derive_seed
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.data import TrainingData
from scaling.core.verify.deviation import Deviation, Held
from scaling.core.verify.shared_tensors import SharedTensors

Tensors = Literal["weights", "gradients"]
Change = Literal["zero", "initial"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, whatever the layout. The functions are called in every process, so they have to be pickled:
    functions of a module, or `functools.partial` of them."""

    layers: Callable[[Topology], Sequence[LayerSpec]]
    """The layers of the model."""
    loss: Callable[[Topology], LossFunction]
    """Makes the loss function."""
    training: BaseDataset[Any]
    evaluation: BaseDataset[Any] | None = None
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    groups: Sequence[GroupPattern] = (
        GroupPattern(
            group=ParameterGroup(
                name="all", learning_rate_scheduler=LearningRateSchedulerConfig(learning_rate=1e-3), weight_decay=0.01
            )
        ),
    )
    """Which parameters are trained how; the default trains all of them."""
    allow_missing: bool = False
    """Freeze parameters that are in no group; otherwise they are an error."""
    seed: int = 42
    usual_weight: float = 1.0
    """The usual weight of a global batch in the loss, as `Optimizer` takes it."""
    precision: str | None = "float64"
    """Type that parameters and floating-point data are brought to. None: whatever the layers make."""


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What a step says about itself, the same on every rank."""

    loss: float
    gradient_norm: float
    weight: float
    overflow: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@final
class Session:
    """A model, its optimizer and its data in one layout, driven step by step. Every method is collective: all ranks.

    Steps go exactly as in a training: the same module, optimizer, data loader and random streams.
    """

    def __init__(self, recipe: Recipe, config: TopologyConfig, topology: Topology) -> None:
        self.topology = topology
        self._recipe = recipe
        self._dtype: torch.dtype | None = None if recipe.precision is None else getattr(torch, recipe.precision)
        specs = recipe.layers(topology)
        if self._dtype is not None:
            specs = [spec.then(partial(_converted, dtype=self._dtype)) for spec in specs]
        self.module = ParallelModule(specs, topology, config, seed=recipe.seed)
        self.optimizer = Optimizer(
            recipe.optimizer,
            assign(self.module.parameters_with_meta(), recipe.groups, topology, allow_missing=recipe.allow_missing),
            topology,
            module=self.module,
            usual_weight=recipe.usual_weight,
        )
        self.optimizer.observer = self._keep_gradients
        self._loss_function = recipe.loss(topology)
        self._data = TrainingData(
            recipe.training,
            recipe.evaluation,
            config=TrainerConfig(seed=recipe.seed),
            batch=config,
            topology=topology,
            reads=self.module.first or self.module.last,
        )
        self._gradients: list[GlobalTensor] = []
        self._initial = self._copied()
        self._before: list[Tensor] = self._initial

    def held(self) -> list[Held]:
        """Return which parts of which weights this rank holds."""
        return [
            Held(key=tensor.key, shape=tensor.shape, boxes=tuple(box for box, _ in tensor.parts), owned=tensor.owned)
            for tensor in self.module.global_tensors()
        ]

    def tensors(self, which: Tensors) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of the weights as they are, or of the gradients of the last step's mean loss."""
        return self.module.global_tensors() if which == "weights" else iter(self._gradients)

    def write(self, which: Tensors, directory: Path) -> None:
        """Write what this rank owns for others to compare with."""
        SharedTensors(directory).write(self.tensors(which))

    def compare(self, which: Tensors, directory: Path) -> list[Deviation]:
        """Return how far what this rank holds is from what was written, once all that write are done."""
        return SharedTensors(directory).compare(self.tensors(which), rank=self.topology.rank)

    def step(self, step: int) -> StepNumbers:
        """Train on global batch `step`, counted from 1."""
        self._before = self._copied()
        self.topology.rng.seed(derive_seed(self._recipe.seed, "step", step))
        loss = self.module.train_step(
            self._batches(step), self._loss_function, gradient_scale=self.optimizer.gradient_scale
        )
        report = self.optimizer.step(step, weight=loss.weight)
        return StepNumbers(
            loss=float(loss.loss),
            gradient_norm=float(report.global_grad_norm),
            weight=float(loss.weight),
            overflow=bool(report.overflow),
            metrics={name: float(value) for name, value in loss.metrics().items()},
        )

    def evaluate(self) -> float | None:
        """Return the loss over the whole evaluation set; None without one."""
        steps = self._data.evaluation_steps()
        if not steps:
            return None
        total, batches = StepLoss(self.topology), self._converting(self._data.evaluation())
        for _ in range(steps):
            total.merge(self.module.eval_step(batches, self._loss_function))
        return float(total.loss)

    @torch.no_grad()
    def probe(self, step: int, changes: Mapping[str, Change]) -> float:
        """Return the training loss of global batch `step` at the weights before the last step, but for `changes`.

        Parameters named in `changes` are zero or as they were initially. The weights stay as that makes them: nothing
        but other probes can follow.
        """
        for (parameter, description), before, initial in zip(
            self.module.parameters_with_meta(), self._before, self._initial, strict=True
        ):
            parameter.copy_(before)
            for piece in description.pieces:
                match changes.get(piece.key):
                    case "zero":
                        piece.local(parameter).zero_()
                    case "initial":
                        piece.local(parameter).copy_(piece.local(initial))
        self.topology.rng.seed(derive_seed(self._recipe.seed, "step", step))
        return float(self.module.eval_step(self._batches(step), self._loss_function, dropout=True).loss)

    def close(self) -> None:
        """Detach from the parameters and stop reading."""
        self.optimizer.close()
        self._data.close()

    def _batches(self, step: int) -> Iterator[MicroBatch]:
        self._data.seek((step - 1) * self._data.geometry.global_batch_size)
        return self._converting(self._data.training)

    def _converting(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        def converted(tensor: Tensor) -> Tensor:
            return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

        for batch in batches:
            yield batch if self._dtype is None else tree.map_tensors(converted, batch)

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
        return [parameter.detach().clone() for parameter, _ in self.module.parameters_with_meta()]


def _converted(module: nn.Module, *, dtype: torch.dtype) -> nn.Module:
    return module.to(dtype)
