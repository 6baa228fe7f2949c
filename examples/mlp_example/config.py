"""What can be set: sections of the engine, then three of the example's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaling.core import BaseConfig, LearningRateSchedulerConfig, OnResume, Problem, RunConfig, TopologyConfig


class TrainingConfig(BaseConfig):
    on_resume = OnResume.SCHEDULE

    weight_decay: float = 0.1
    """AdamW's weight decay. 0: off."""


class ArchitectureConfig(BaseConfig):
    on_resume = OnResume.IDENTITY

    n_hidden_layers: int = 3
    """Residual layers between the first and the last."""
    hidden_dim: int = 128
    """Features between the layers."""


class DataConfig(BaseConfig):
    on_resume = OnResume.RUNTIME

    directory: Path | None = None
    """Folder of the four files of MNIST, gzipped or not. null: the 10 000 digits that come with the example."""
    download: bool = False
    """Download what the directory lacks (null: .data/mnist). All machines of a run must see the same directory."""


def fit(topology: TopologyConfig, architecture: ArchitectureConfig) -> Iterator[Problem]:
    """Check that the topology can cut the model."""
    width, parts = architecture.hidden_dim, topology.model_parallel_size
    layers, fewest = architecture.n_hidden_layers, max(0, topology.pipe_stages - 3)
    if width < 1 or width % parts:
        yield Problem("architecture.hidden_dim", f"is {width}; make it a multiple of model_parallel_size ({parts})")
    if layers < fewest:
        yield Problem("architecture.n_hidden_layers", f"is {layers}; with this topology it must be at least {fewest}")


class MLPConfig(RunConfig):
    cross_checks = (fit,)

    learning_rate_scheduler: LearningRateSchedulerConfig = LearningRateSchedulerConfig()
    training: TrainingConfig = TrainingConfig()
    architecture: ArchitectureConfig = ArchitectureConfig()
    data: DataConfig = DataConfig()
