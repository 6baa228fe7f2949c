"""A module and its optimizer as a training makes them, for tests that feed the module themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from scaling.core.data.types import BaseDataset, MicroBatch
from scaling.core.optimizer.config import AdamWConfig, OptimizerConfig
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.optimizer.optimizer import Optimizer
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossOutput
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.topology import Topology
from scaling.core.training.learner import Learner
from scaling.core.training.recipe import Recipe


@final
class Unread(BaseDataset[Any]):
    """Stands for the data of a training that nobody reads."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def collate(self, samples: Sequence[Any], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return "unread"


def uncalled(output: Any, targets: Any) -> LossOutput:
    """Stand for the loss function of a training that calls none."""
    raise NotImplementedError


def everything(rate: float = 1e-2, **options: Any) -> tuple[GroupPattern, ...]:
    """Return one group of all parameters, with a constant learning rate."""
    schedule = LearningRateSchedulerConfig(learning_rate=rate)
    return (GroupPattern(group=ParameterGroup(name="all", learning_rate_scheduler=schedule, **options)),)


def module_and_optimizer(
    layers: Sequence[LayerSpec],
    topology: Topology,
    config: TopologyConfig,
    optimizer: OptimizerConfig | None = None,
    *,
    groups: Sequence[GroupPattern] | None = None,
    **options: Any,
) -> tuple[ParallelModule, Optimizer]:
    """Return what a learner makes of layers; `options` are fields of `Recipe`."""
    recipe = Recipe(
        layers=lambda _: layers,
        loss=lambda _: uncalled,
        training=Unread(),
        optimizer=optimizer or AdamWConfig(),
        groups=everything() if groups is None else groups,
        **{"seed": 1, **options},
    )
    learner = Learner(recipe, config, topology)
    return learner.module, learner.optimizer
