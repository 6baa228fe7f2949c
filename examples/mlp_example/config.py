"""What can be set: sections of the engine, then three of the example's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaling.core import (
    BaseConfig,
    LearningRateSchedulerConfig,
    LoggerConfig,
    OptimizerConfig,
    Problem,
    RunnerConfig,
    TopologyConfig,
    TrainerConfig,
)


class TrainingConfig(BaseConfig):
    """What happens to the weights besides following the gradient."""

    weight_decay: float = 0.01
    """AdamW's weight decay. 0: off."""


class ArchitectureConfig(BaseConfig):
    """Size of the model."""

    n_hidden_layers: int = 3
    """Residual layers between the first and the last."""
    hidden_dim: int = 128
    """Features between the layers."""


class DataConfig(BaseConfig):
    """Where the digits are."""

    directory: Path | None = None
    """Folder with the four files of MNIST, gzipped or not. null: the 10 000 digits that come with the example."""
    download: bool = False
    """Download into the directory what is missing. All machines of a run must see the same directory."""

    def problems(self) -> Iterator[Problem]:
        """Check what is wrong within the section."""
        if self.download and self.directory is None:
            yield Problem("download", "is true, but directory is null; name the folder to download into")


def cut(topology: TopologyConfig, architecture: ArchitectureConfig) -> Iterator[Problem]:
    """Check that the model can be cut as the topology asks."""
    fewest = max(0, topology.pipe_stages - 3)
    if architecture.n_hidden_layers < fewest:
        yield Problem("architecture.n_hidden_layers", f"is {architecture.n_hidden_layers}; it must be {fewest} or more")
    if architecture.hidden_dim < 1 or architecture.hidden_dim % topology.model_parallel_size:
        parts = f"model_parallel_size ({topology.model_parallel_size})"
        yield Problem("architecture.hidden_dim", f"is {architecture.hidden_dim}; it must be a multiple of {parts}")


class MLPConfig(BaseConfig):
    """A training run of the classifier."""

    cross_checks = (cut,)

    runner: RunnerConfig = RunnerConfig()
    logger: LoggerConfig = LoggerConfig()
    topology: TopologyConfig = TopologyConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    learning_rate_scheduler: LearningRateSchedulerConfig = LearningRateSchedulerConfig()
    trainer: TrainerConfig = TrainerConfig()
    training: TrainingConfig = TrainingConfig()
    architecture: ArchitectureConfig = ArchitectureConfig()
    data: DataConfig = DataConfig()
