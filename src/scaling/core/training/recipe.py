"""Recipe: the description of a training, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaling.core.data.types import BaseDataset
from scaling.core.optimizer.config import AdamWConfig, OptimizerConfig
from scaling.core.optimizer.groups import GroupPattern, ParameterGroup
from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.loss import LossFunction
from scaling.core.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The description of a training, independent of its layout: training and `verify-layout` start from the same one.

    The functions are called in every process. Where `verify_layout` starts the processes, the functions are pickled:
    use functions of a module, `functools.partial` of them, or instances of a dataclass.
    """

    layers: Callable[[Topology], Sequence[LayerSpec]]
    """The layers of the model."""
    loss: Callable[[Topology], LossFunction]
    """Makes the loss function."""
    training: BaseDataset[Any]
    """The training data set."""
    evaluation: BaseDataset[Any] | None = None
    """The evaluation data set. None: there is no evaluation."""
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
    on_base: bool = False
    """Train on a base: parameters in no group come from the checkpoint in `trainer.load_dir`, weights only, and are not
    saved with the trained ones."""
    grown: Sequence[str] = ()
    """Patterns of tensors that may have more rows than the base has: the additional ones keep their initial values."""
    seed: int = 42
    """Seed of weights, data order and random streams."""
    usual_weight: float = 1.0
    """The usual weight of a global batch in the loss, as `Optimizer` takes it."""
    tokens_per_sample: int | None = None
    """Converts samples to tokens in the metrics. None: samples are counted."""
    flops_per_sample: float | None = None
    """Floating-point operations of a step for each sample, for the used share of the GPU's peak rate. None: unknown."""
