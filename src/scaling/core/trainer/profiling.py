"""Record a timeline of a few steps: every pipeline action of every rank, beside each other in one file."""

from __future__ import annotations

import contextlib
import json
import logging
from functools import partial
from pathlib import Path
from typing import final

from scaling.core.optimizer.optimizer import StepReport
from scaling.core.pipeline.actions import Action
from scaling.core.pipeline.draw import label
from scaling.core.pipeline.engine import untimed
from scaling.core.pipeline.stage_map import StageMap
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.profiler.profiler import Profiler
from scaling.core.storage.writing import write_atomically
from scaling.core.topology.topology import Topology
from scaling.core.trainer.hooks import TrainerHook, TrainerView

_log = logging.getLogger(__name__)


@final
class ProfilingHook(TrainerHook):
    """Times the engine's actions from `profile_start_at_step` on and writes them as a trace when they are complete.

    Open the file in Perfetto (ui.perfetto.dev) or chrome://tracing; the names are those of the planned timeline
    (`scaling.core.pipeline.draw`). The ranks' spans travel to rank 0 over the store, once. All ranks take part.
    """

    def __init__(self, config: ProfilerConfig, topology: Topology, output: Path) -> None:
        first = max(1, config.profile_start_at_step)
        self._steps = range(first, first + config.profile_steps)
        self._topology = topology
        self._output = output
        self._done = 0
        self._profiler = Profiler(topology.device)

    def before_step(self, trainer: TrainerView) -> None:
        """Switch the timers on for the steps to record."""
        self._done += 1
        if self._done == self._steps.start:
            engine = trainer.learner.module.engine
            engine.timer = partial(self._timed, engine.stage_map)

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        """Switch the timers off after the last of them and write the file."""
        if self._done == self._steps.stop - 1:
            trainer.learner.module.engine.timer = untimed
            self._write()

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        """Leave the engine as it was."""
        trainer.learner.module.engine.timer = untimed

    def _timed(self, stages: StageMap, action: Action) -> contextlib.AbstractContextManager[None]:
        return self._profiler.record(label(action, stages), type(action).__name__.lower())

    def _write(self) -> None:
        mine = [span.trace_event(process=self._topology.rank) for span in self._profiler.spans()]
        everyone = self._topology.gather("profile", mine)
        if everyone is None:
            return
        events = [event for spans in everyone for event in spans]
        names = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": f"rank {rank} {at}"}}
            for rank in range(self._topology.layout.world_size)
            for at in [self._topology.layout.coordinate(rank)]
        ]
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"})
            write_atomically(self._output, content.encode(), durable=False)
        except OSError as error:  # a timeline is not worth a run
            _log.warning("the timeline was not written to %s: %s", self._output, error)
        else:
            _log.info("the timeline of %d steps is in %s", len(self._steps), self._output)
