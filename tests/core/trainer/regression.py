"""A trainer of a linear regression, small enough to be checked by hand, in any layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Alone, Communicator, StoreCommunicator
from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.nn.parameter import meta
from scaling.core.optimizer.config import AdamWConfig
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.hooks import TrainerHook
from scaling.core.trainer.state import RunIdentity
from scaling.core.trainer.trainer import Trainer
from scaling.core.training.learner import Learner
from scaling.core.training.recipe import Recipe
from tests.reference.worlds import random, topology_config

FEATURES = 4


class Points(BaseDataset[tuple[Tensor, Tensor]]):
    """Point i has coordinates drawn from seed i; `poison` is a point whose value is not a number."""

    def __init__(self, length: int, *, poison: int | None = None) -> None:
        self.length = length
        self.poison = poison

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = random(FEATURES, seed=index)
        return x, x.sum() if index != self.poison else torch.tensor(torch.nan, dtype=torch.float64)

    def collate(
        self, samples: Sequence[tuple[Tensor, Tensor]], positions: Sequence[int], valid: Sequence[bool]
    ) -> MicroBatch:
        targets = torch.stack([value for _, value in samples])
        return MicroBatch(torch.stack([x for x, _ in samples]), (targets, torch.tensor(valid, dtype=torch.float64)))

    def fingerprint(self) -> str:
        return f"{self.length} points"


class Gained(nn.Linear):
    """A linear layer with a method of fine-tuning: it adds a factor for each output, at first the norm of its row."""

    def __init__(self, **options: Any) -> None:
        super().__init__(FEATURES, FEATURES, **options)
        self.gain = nn.Parameter(torch.full((FEATURES,), 2.0, dtype=self.weight.dtype))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain

    def follow_base(self) -> None:
        self.gain.copy_(self.weight.norm(dim=1))


def squared_error(output: Tensor, targets: tuple[Tensor, Tensor]) -> LossOutput:
    """Return the loss of the valid points, and their number as a metric."""
    values, valid = targets
    errors = (output.sum(-1) - values).square() * valid
    return LossOutput(errors.sum(), valid.sum(), {"ones": valid.sum()})


@dataclass
class Metrics:
    """Keeps what it is given, as plain numbers once flushed."""

    kept: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    waiting: list[tuple[int, Mapping[str, float | Tensor]]] = field(default_factory=list)
    opened_at: int = -1
    closed: bool = False

    def open(self, step: int) -> Metrics:
        """Take note of the step that training goes on from."""
        self.opened_at = step
        return self

    def add(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Keep the metrics of a step."""
        self.waiting.append((step, metrics))

    def add_vector(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """Keep metrics of a step that lie in one vector."""
        self.add(step, dict(zip(names, values.unbind(), strict=True)))

    def flush(self) -> dict[int, dict[str, float]]:
        """Read what waits."""
        written: dict[int, dict[str, float]] = {}
        for step, metrics in self.waiting:
            self.kept.append((step, {name: float(value) for name, value in metrics.items()}))
            written.setdefault(step, {}).update(self.kept[-1][1])
        self.waiting.clear()
        return written

    def close(self) -> None:
        """Flush for the last time."""
        self.flush()
        self.closed = True

    def series(self, name: str) -> dict[int, float]:
        """Return the values of a metric by step."""
        return {step: metrics[name] for step, metrics in self.kept if name in metrics}


def communicator_of(topology: Topology) -> Communicator:
    """Return what ranks agree on checkpoints over."""
    if topology.store is None:
        return Alone()
    return StoreCommunicator(topology.store, topology.rank, topology.layout.world_size)


def layers(topology: Topology, *, gained: bool) -> list[LayerSpec]:
    """Return the layers of the regression, with the method of fine-tuning or without."""
    if gained:
        return [LayerSpec(Gained, dtype=torch.float64) for _ in range(2)]
    return [LayerSpec(nn.Linear, FEATURES, FEATURES, dtype=torch.float64) for _ in range(2)]


def make_trainer(
    topology: Topology | None = None,
    *,
    training: Points | None = None,
    validation: Points | None = None,
    save_dir: Path | None = None,
    hooks: Sequence[TrainerHook] = (),
    tokens_per_sample: int | None = None,
    identity: RunIdentity | None = None,
    micro_batch_size: int = 2,
    global_batch_size: int = 8,
    clipping: float = 1.0,
    tunes: Sequence[str] = (),
    **options: Any,
) -> tuple[Trainer, Metrics]:
    """Return a trainer of two layers and the metrics it writes to.

    `tunes` names what a fine-tuning trains, on a base: the layers then have gains.
    """
    topology = topology or Topology.single()
    sizes = {axis.value: topology.size(axis) for axis in (Axis.PIPE, Axis.DATA)}
    batch = topology_config(**sizes, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size)
    config = TrainerConfig.from_dict({"save_dir": save_dir, "train_iterations": 4, "log_interval": 2, **options})
    group = ParameterGroup(name="all", learning_rate_scheduler=LearningRateSchedulerConfig(learning_rate=1e-2))
    recipe = Recipe(
        layers=partial(layers, gained=bool(tunes)),
        loss=lambda topology: squared_error,
        training=training or Points(20),
        evaluation=validation,
        optimizer=AdamWConfig(gradient_clipping=clipping),
        groups=[GroupPattern(group=group, include=tunes)],
        allow_missing=bool(tunes),
        on_base=bool(tunes),
        seed=config.seed,
        tokens_per_sample=tokens_per_sample,
    )
    metrics = Metrics()
    trainer = Trainer(
        config,
        Learner(recipe, batch, topology, loading=config.loading),
        identity=identity or RunIdentity(AdamWConfig()),
        checkpointer=Checkpointer(
            config.save_dir, communicator=communicator_of(topology), asynchronous=config.save_async
        ),
        open_metrics=metrics.open,
        hooks=hooks,
    )
    return trainer, metrics


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return copies of this rank's weights by name."""
    return {meta(p).name: p.detach().clone() for p in trainer.learner.module.parameters()}
