"""The optimizer: gradients reduced in buckets, one fused update of each rank's shard (ZeRO-1), schedules, scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.optimizer.config import AdamWConfig as AdamWConfig
    from scaling.core.optimizer.config import LossScalerConfig as LossScalerConfig
    from scaling.core.optimizer.config import OptimizerConfig as OptimizerConfig
    from scaling.core.optimizer.config import vanishing_constants as vanishing_constants
    from scaling.core.optimizer.groups import GroupPattern as GroupPattern
    from scaling.core.optimizer.groups import ParameterGroup as ParameterGroup
    from scaling.core.optimizer.groups import assign as assign
    from scaling.core.optimizer.groups import check_groups as check_groups
    from scaling.core.optimizer.loss_scaler import LossScaler as LossScaler
    from scaling.core.optimizer.lr_schedule import LearningRateDecayStyle as LearningRateDecayStyle
    from scaling.core.optimizer.lr_schedule import LearningRateScheduler as LearningRateScheduler
    from scaling.core.optimizer.lr_schedule import LearningRateSchedulerConfig as LearningRateSchedulerConfig
    from scaling.core.optimizer.lr_schedule import steps_at_zero as steps_at_zero
    from scaling.core.optimizer.optimizer import Optimizer as Optimizer
    from scaling.core.optimizer.optimizer import StepReport as StepReport
    from scaling.core.optimizer.patterns import name_in_layer as name_in_layer
    from scaling.core.optimizer.patterns import takes_parameter as takes_parameter
    from scaling.core.optimizer.patterns import unmatched_patterns as unmatched_patterns
    from scaling.core.optimizer.rule import AdamW as AdamW
    from scaling.core.optimizer.rule import Pace as Pace
    from scaling.core.optimizer.rule import UpdateRule as UpdateRule
    from scaling.core.optimizer.shard import FlatShard as FlatShard
    from scaling.core.optimizer.shard import Matrix as Matrix
    from scaling.core.optimizer.shard import slot_bytes as slot_bytes

load_on_use(__name__)
