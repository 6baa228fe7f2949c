"""TrainerConfig: how long to train, when to evaluate and save, and what to resume from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import NoEffect, OnResume, Unavailable
from scaling.core.config.patterns import pattern_problems
from scaling.core.errors import Problem
from scaling.core.statistics.config import TensorStatisticsRecorderConfig
from scaling.core.training.loading import Loading


class TrainerConfig(BaseConfig):
    """Length of the training, evaluation, checkpoints and data loading."""

    on_resume = OnResume.RUNTIME

    train_iterations: Annotated[int | None, OnResume.SCHEDULE] = Field(default=None, ge=0)
    """Optimizer step at which training ends, counted from the very first. null: 0, nothing is trained."""
    seed: Annotated[int, OnResume.ORDER] = Field(default=42, ge=0)
    """Seed of weights, data order and dropout. The same seed gives the same run in every layout."""
    eval_interval: int | None = Field(default=None, ge=1)
    """Number of steps between evaluations. null: never."""
    eval_iterations: int | None = Field(default=None, ge=1)
    """Global batches of one evaluation. null: the whole validation set once."""
    log_interval: int = Field(default=1, ge=1)
    """Number of steps between writes of metrics. The host waits for the device only then."""
    save_dir: Path | None = None
    """Folder of this run's checkpoints. A run that finds its own here continues from the newest. null: nothing is
    saved."""
    save_interval: int | None = Field(default=None, ge=1)
    """Number of steps between saves. null: only at the end and when stopped."""
    final_save: bool = True
    """Save after the last step."""
    save_async: bool = False
    """Write checkpoints in the background while training goes on; needs host memory for one copy."""
    keep_last_checkpoints: int | None = Field(default=None, ge=1)
    """Number of newest checkpoints to keep; older ones are deleted. null: keep all."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Never delete checkpoints whose step is a multiple of this. null: none is exempt."""
    delete_past_optimizer_states: bool = False
    """Delete the optimizer states of all checkpoints but the newest: the others can then be used, but not resumed
    from."""
    load_dir: Path | None = None
    """Checkpoint to start from if save_dir holds none: a folder of checkpoints or one step's folder. null: random
    weights. The settings that follow say how much of it to load; a run loads its own checkpoints in full. A fine-tuning
    takes its base from here, also when it resumes and the base is no longer where it was."""
    assert_checkpoint_loaded: bool = False
    """Fail if no checkpoint was found in save_dir or load_dir, instead of starting from random weights."""
    load_optimizer_states: bool = True
    """Load master weights and moments too; false starts the optimizer anew from the loaded weights, as a fine-tuning
    does in any case."""
    load_context: bool = True
    """Continue counting steps and samples; false starts at step 0 and the first sample, as a fine-tuning does in any
    case."""
    allowed_missing_keys_in_checkpoint: list[str] | None = None
    """Patterns (regular expressions, found anywhere) of parameters that may be absent from the checkpoint; they keep
    their initial values, as do their masters and moments. null: none."""
    allowed_unexpected_keys_in_checkpoint: list[str] | None = None
    """Patterns of parameters that may be in the checkpoint and not in the model; they are not read. null: none."""
    ignore_keys_in_checkpoint: list[str] | None = None
    """Patterns of parameters that are not read although the model and the checkpoint have them; neither are their
    masters and moments. List them as allowed to be missing too. In a fine-tuning they apply to trained parameters only.
    null: none."""
    map_base: bool = False
    """Map frozen weights of a fine-tuning's base into memory, shared by all processes of a machine, instead of copying
    them. On the CPU only; the files of the base must not change meanwhile."""
    accept_changes: list[str] = Field(default_factory=list)
    """Settings, by dotted name, that may differ from the checkpoint's although they change the training, for example
    transformer_architecture.norm_type. The name of a section accepts everything in it."""
    max_consecutive_nonfinite_steps: int = Field(default=5, ge=0)
    """A step whose loss or gradient is not finite is skipped; more than this many in a row end the run."""
    gc_interval: int = Field(default=100, ge=0)
    """Number of steps between collections of Python's garbage, on all ranks at once. 0: leave it to Python."""
    dataloader_num_workers: int = Field(default=0, ge=0)
    """Processes that prepare samples for each rank. 0: the training process does."""
    dataloader_pin_memory: bool = True
    """Copy batches to the GPU from page-locked memory. Has no effect on the CPU."""
    dataloader_prefetch_factor: int | None = Field(default=None, ge=1)
    """Micro-batches each worker prepares ahead. null: 2."""
    merge_lora_after_loading_checkpoint: Annotated[
        bool | None,
        Unavailable(
            "merge once, with scaling checkpoint merge BASE ADAPTER DST, and start from DST without lora_config"
        ),
    ] = False
    """Merge LoRA weights into the base weights after loading."""
    tensor_statistics_recorder_config: TensorStatisticsRecorderConfig | None = None
    """Statistics of activations, weights and gradients, written with the metrics as statistics/NAME/STATISTIC. null:
    none are recorded; {}: the usual ones, every 100 steps."""
    separate_file_for_parameters: Annotated[
        list[str] | None, NoEffect("checkpoints hold named tensors, of which any part can be loaded by itself")
    ] = None
    """Formerly: parameters saved in files of their own."""

    @property
    def loading(self) -> Loading:
        """Return how the data are read."""
        return Loading(
            workers=self.dataloader_num_workers,
            pin_memory=self.dataloader_pin_memory,
            prefetch_factor=self.dataloader_prefetch_factor if self.dataloader_num_workers else None,
        )

    @property
    def loads_from_elsewhere(self) -> bool:
        """Return whether `load_dir` is another folder than `save_dir`; the same folder is worth no message."""
        if self.load_dir is None:
            return False
        return self.save_dir is None or self.load_dir.resolve() != self.save_dir.resolve()

    def problems(self) -> Iterator[Problem]:
        """Check the patterns."""
        for name in (
            "allowed_missing_keys_in_checkpoint",
            "allowed_unexpected_keys_in_checkpoint",
            "ignore_keys_in_checkpoint",
        ):
            yield from pattern_problems(name, getattr(self, name) or ())

    def notes(self) -> Iterator[Problem]:
        """Yield settings that have no effect because another one is not given."""
        if self.save_interval is not None and self.save_dir is None:
            yield Problem("save_interval", f"is {self.save_interval}, but save_dir is null: nothing is saved")
        if self.dataloader_prefetch_factor is not None and self.dataloader_num_workers == 0:
            yield Problem(
                "dataloader_prefetch_factor",
                f"is {self.dataloader_prefetch_factor}, but dataloader_num_workers is 0: nothing is prepared ahead",
            )
        if self.assert_checkpoint_loaded and self.load_dir is None and self.save_dir is None:
            yield Problem(
                "assert_checkpoint_loaded",
                "is true, but neither load_dir nor save_dir says where a checkpoint is: training starts from random "
                "weights",
            )
