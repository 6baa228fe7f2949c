"""The hooks that a configuration asks for, as a list like any other."""

from __future__ import annotations

from typing import final

from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.run_state import RunStateRecorder
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from scaling.core.trainer.profiling import ProfilingHook
from scaling.core.trainer.state import due
from scaling.core.trainer.statistics import StatisticsHook
from scaling.core.training.learner import Learner


def statistics_hooks(config: TrainerConfig, learner: Learner) -> list[TrainerHook]:
    """Return the hooks that record statistics of tensors, if configured. Collective: all ranks."""
    statistics = config.tensor_statistics_recorder_config
    return [] if statistics is None else [StatisticsHook(statistics, learner)]


def builtin_hooks(
    profiler: ProfilerConfig, logger: LoggerConfig, recorder: RunStateRecorder, topology: Topology
) -> list[TrainerHook]:
    """Return the hooks of a run: its timeline, where one is asked for, and its state."""
    output = profiler.profiler_output or (logger.log_dir / "profile.json" if logger.log_dir else None)
    timeline = [ProfilingHook(profiler, topology, output)] if profiler.profile_steps and output else []
    return [*timeline, RunStateHook(recorder)]


@final
class RunStateHook(TrainerHook):
    """The record of a run's progress in run_state.json, for people and so that a failure can name its step.

    The end of a run is recorded elsewhere, where its exit status is known.
    """

    def __init__(self, recorder: RunStateRecorder) -> None:
        self._recorder = recorder

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        """Record the step where metrics are written too."""
        if due(trainer.state.step, trainer.config.log_interval):
            self._recorder.running(trainer.state.step)
