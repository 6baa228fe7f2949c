"""ProfilerConfig: which steps are timed, and where the timeline goes."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import OnResume


class ProfilerConfig(BaseConfig):
    """Timeline of what each rank did in a few steps, and of what the schedule predicts."""

    on_resume = OnResume.RUNTIME

    profile_steps: int = Field(default=0, ge=0)
    """Number of steps to record. 0: off."""
    profile_start_at_step: int = Field(default=10, ge=0)
    """First step to record, counted from the start of this process so that warm-up is left out. 0 and 1: the first."""
    profiler_output: Path | None = None
    """File for the timeline. null: profile.json in logger.log_dir, or no file where that is null too."""
    torch_profiler: bool = False
    """Whether the timeline also has the events of torch.profiler on each rank: every operation and, on GPUs, every
    kernel, including those of NCCL. This slows the recorded steps down, and takes some megabytes per rank and step."""
