"""TransformerConfig: everything about a training run of a language model, one section for each concern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import Self

from scaling.core import (
    AdamWConfig,
    BaseConfig,
    LearningRateSchedulerConfig,
    LoggerConfig,
    NoEffect,
    OnResume,
    OptimizerConfig,
    ProfilerConfig,
    Reading,
    RunnerConfig,
    TopologyConfig,
    TrainerConfig,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.checks import CHECKS
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.first_version import read_first_version
from scaling.transformer.config.training import TrainingConfig, TrainingGroupConfig


class TransformerConfig(BaseConfig):
    """A training run of a language model. Every section and every key has a default.

    To train on your own text, give at least transformer_architecture.vocab_file, data.data_prefixes,
    trainer.train_iterations, trainer.save_dir and logger.log_dir; the other keys can be left out.
    """

    former_names: ClassVar[Mapping[str, str]] = {"luminous_architecture": "transformer_architecture"}
    cross_checks = CHECKS

    version: Annotated[str, OnResume.RUNTIME] = ".unknown."
    """Free text about the model, kept in checkpoints."""
    runner: RunnerConfig = Field(default_factory=RunnerConfig)
    """Where the processes of a run are started."""
    logger: LoggerConfig = Field(default_factory=LoggerConfig)
    """Messages, metrics and their destinations."""
    topology: TopologyConfig = Field(default_factory=TopologyConfig)
    """Processes on each axis, and samples in each step."""
    optimizer: OptimizerConfig = Field(default_factory=AdamWConfig)
    """The optimizer."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """The loss, and settings of the training as a whole."""
    training_groups: list[TrainingGroupConfig] = Field(default_factory=list)
    """Groups of parameters, each with its weight decay and learning rate. Empty: one group of all parameters."""
    learning_rate_scheduler: LearningRateSchedulerConfig | None = None
    """Short form for a single group of all parameters, instead of training_groups. null: training_groups."""
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    """Length of the training, evaluation, checkpoints and data loading."""
    profiler: ProfilerConfig = Field(default_factory=ProfilerConfig)
    """Timeline of what each rank did in a few steps, and of what the schedule predicts."""
    transformer_architecture: TransformerArchitectureConfig = Field(default_factory=TransformerArchitectureConfig)
    """The model."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Training and validation data."""
    determined_experiment_id: Annotated[int | None, NoEffect("determined is no longer supported")] = None
    """Formerly: number of the experiment."""
    determined_trial_id: Annotated[int | None, NoEffect("determined is no longer supported")] = None
    """Formerly: number of the trial."""

    @classmethod
    def read_former(cls, values: Mapping[str, Any]) -> Reading:
        """Make training_groups from the settings that version 0.1 had in their place."""
        return read_first_version(values)

    def derived(self) -> Mapping[str, Any]:
        """Turn the short form, or its absence, into one group of all parameters: `training_groups` is never empty."""
        if self.training_groups:
            return {}
        scheduler = self.learning_rate_scheduler or LearningRateSchedulerConfig()
        group = TrainingGroupConfig(group_name="all", learning_rate_scheduler=scheduler)
        return {"training_groups": [group], "learning_rate_scheduler": None}

    def with_launch(self, rank: int, world_size: int, local_slot: int) -> Self:
        """Return a copy for one process; `ConfigError` if the number of processes is not the topology's."""
        topology = self.topology.with_launch(rank, world_size, local_slot)
        return self.model_copy(update={"topology": topology})
