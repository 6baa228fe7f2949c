"""Record a timeline of a few steps: the actions of every rank, and those expected from the schedule, in one file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import final

from scaling.core.optimizer.optimizer import StepReport
from scaling.core.pipeline.loss import StepLoss
from scaling.core.profiler.clock import HostClock
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.storage.writing import write_atomically
from scaling.core.topology.topology import Topology
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from scaling.core.trainer.recording import Recording

_log = logging.getLogger(__name__)


@final
class ProfilingHook(TrainerHook):
    """A timer of the ranks' actions from step `profile_start_at_step` on, which writes a trace (docs/profiling.md).

    The window ends when the step after it begins, so that an evaluation and a save after its last step are in it, or
    with the training. All ranks take part: at both ends of the window they measure how far their clocks are apart, and
    at its end their records are gathered on rank 0. After an error nothing is written.
    """

    def __init__(
        self, config: ProfilerConfig, topology: Topology, output: Path, *, clock: HostClock | None = None
    ) -> None:
        first = max(1, config.profile_start_at_step)
        self._steps = range(first, first + config.profile_steps)
        self._with_torch = config.torch_profiler
        self._topology = topology
        self._output = output
        self._clock = clock or HostClock()
        self._done = 0
        self._recording: Recording | None = None

    def before_step(self, trainer: TrainerView) -> None:
        """Begin or end the recording."""
        self._done += 1
        if self._done == 1:
            self._warn_of_missed_steps(trainer)
        if self._done == self._steps.start:
            self._recording = Recording(self._topology, trainer.learner, self._clock, with_torch=self._with_torch)
        elif self._done == self._steps.stop:
            self._write()
        if self._recording is not None:
            self._recording.profiler.common = {"step": trainer.state.step + 1}

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        """Mark spans that follow as not part of the step."""
        if self._recording is not None:
            self._recording.steps += 1
            self._recording.profiler.common = {"after_step": trainer.state.step}

    def before_evaluation(self, trainer: TrainerView) -> None:
        """Begin the span of an evaluation."""
        self._open("evaluation")

    def after_evaluation(self, trainer: TrainerView, loss: StepLoss) -> None:
        """End the span of an evaluation."""
        self._close()

    def before_save(self, trainer: TrainerView) -> None:
        """Begin the span of a checkpoint."""
        self._open("checkpoint")

    def after_save(self, trainer: TrainerView, checkpoint: Path | None) -> None:
        """End the span of a checkpoint: what is still being written in the background is not in the timeline."""
        self._close()

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        """Write the recording if the training ended without an error, and restore everything as it was."""
        if self._recording is not None and error is None:
            self._write()
        elif self._recording is not None:
            self._recording.stop()
            self._recording = None

    def _open(self, what: str) -> None:
        if self._recording is not None:
            self._recording.stretch.enter_context(self._recording.profiler.record(what, what))

    def _close(self) -> None:
        if self._recording is not None:
            self._recording.stretch.close()

    def _warn_of_missed_steps(self, trainer: TrainerView) -> None:
        """Warn where training ends before the last step to be recorded."""
        left = (trainer.config.train_iterations or 0) - trainer.state.step
        recorded = max(0, left + 1 - self._steps.start)
        if recorded < len(self._steps) and self._topology.rank == 0:
            _log.warning(
                "%d of the %d steps of the timeline are recorded (profiler.profile_steps): they begin with step %d of "
                "this process (profiler.profile_start_at_step), and %d are left to train (trainer.train_iterations)",
                recorded,
                len(self._steps),
                self._steps.start,
                left,
            )

    def _write(self) -> None:
        recording, self._recording = self._recording, None
        assert recording is not None
        trace = recording.finish()
        if trace is None:
            return
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._output, trace, durable=False)
        except OSError as error:  # a lost timeline must not end the run
            _log.warning("the timeline was not written to %s: %s", self._output, error)
        else:
            _log.info("the timeline of %d steps is in %s", recording.steps, self._output)
