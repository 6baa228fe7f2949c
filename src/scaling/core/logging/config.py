"""LoggerConfig: what is logged, by which ranks, and where to."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import NoEffect, OnResume
from scaling.core.errors import Problem


class LogLevel(str, Enum):
    """Least severe message that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class TensorboardRanksConfig(BaseConfig):
    """Ranks by their positions on the axes."""

    pipe_parallel_rank: int | None = Field(default=None, ge=0)
    """Position on the pipe axis. null: all."""
    data_parallel_rank: int | None = Field(default=None, ge=0)
    """Position on the data axis. null: all."""
    model_parallel_rank: int | None = Field(default=None, ge=0)
    """Position on the model axis. null: all."""


class LoggerConfig(BaseConfig):
    """Messages, metrics and their destinations."""

    on_resume = OnResume.RUNTIME

    log_level: LogLevel = LogLevel.INFO
    """debug, info, warning, error or critical."""
    log_dir: Path | None = None
    """Folder for metrics.jsonl, config.yml, run.json and the log of each rank, used exactly as given. null: nothing is
    written."""
    metrics_ranks: list[int] | None = None
    """Ranks that print metrics. null: rank 0."""
    use_tensorboard: bool = False
    """Write metrics for TensorBoard below log_dir, if that is given; needs `pip install scaling[tensorboard]`."""
    tensorboard_ranks: list[int] | TensorboardRanksConfig | None = None
    """Ranks that write to TensorBoard: a list, or positions on the axes. null: rank 0."""
    use_wandb: bool = False
    """Send metrics to Weights & Biases; needs `pip install scaling[wandb]` and WANDB_API_KEY in the environment."""
    wandb_ranks: list[int] | None = None
    """Ranks that send to Weights & Biases. null: rank 0."""
    wandb_host: str = "https://api.wandb.ai"
    """Address of the Weights & Biases server."""
    wandb_team: str | None = None
    """Team (entity) the run belongs to. null: your own."""
    wandb_project: str = "scaling"
    """Project the run belongs to."""
    wandb_group: str | None = None
    """Group the run belongs to. null: none."""
    use_trackio: bool = False
    """Rank 0 keeps metrics with trackio, in a database on its machine; needs `pip install scaling[trackio]`."""
    trackio_project: str = "scaling"
    """Project the run belongs to: `trackio show --project NAME` opens it."""
    wandb_api_key: Annotated[
        str | None,
        NoEffect("keys in files end up in logs and checkpoints; remove it, and export WANDB_API_KEY instead"),
    ] = None
    """Never read: set WANDB_API_KEY in the environment."""
    determined_metrics_ranks: Annotated[list[int] | None, NoEffect("determined is no longer supported")] = None
    """Formerly: ranks that report to determined."""

    def problems(self) -> Iterator[Problem]:
        """Check that ranks are not negative."""
        for name in ("metrics_ranks", "tensorboard_ranks", "wandb_ranks"):
            ranks = getattr(self, name)
            for index, rank in enumerate(ranks if isinstance(ranks, list) else ()):
                if rank < 0:
                    yield Problem(f"{name}.{index}", f"is {rank}; ranks start at 0")

    def notes(self) -> Iterator[Problem]:
        """Yield outputs that are switched on but have no destination."""
        if self.use_tensorboard and self.log_dir is None:
            yield Problem("use_tensorboard", "is true, but log_dir is null: nothing is written for TensorBoard")
