"""Record statistics of activations, weights and gradients in the steps that a configuration asks for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Final, final

from torch import Tensor

from scaling.core.boxes import GlobalTensor
from scaling.core.config.plain_words import first_of
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.statistics.activations import ActivationWatch, names_of, usual_placement, watched_modules
from scaling.core.statistics.config import TensorStatisticsRecorderConfig
from scaling.core.statistics.names import (
    ACTIVATION_GRADIENTS,
    ACTIVATIONS,
    PARAMETER_GRADIENTS,
    PARAMETERS,
    chosen,
    joined_names,
)
from scaling.core.statistics.recorder import TensorStatisticsRecorder
from scaling.core.topology.layout import Axis
from scaling.core.trainer.hooks import TrainerHook, TrainerView
from scaling.core.trainer.state import due
from scaling.core.training.learner import Learner

_log = logging.getLogger(__name__)

METRIC: Final = "statistics/"
"""Prefix of the names of the metrics."""
_SHOWN: Final = 5
"""How many activations a warning names."""
_OF_MODULES: Final = (ACTIVATIONS, ACTIVATION_GRADIENTS)


@final
class StatisticsHook(TrainerHook):
    """A recorder of statistics in steps that are multiples of `interval`; in others it only checks the number.

    Weights are those that the step starts from; gradients are those of the mean loss before clipping, over all
    micro-batches and ranks. In a recorded step, layers run uncompiled. Creating one is collective: all ranks; a
    `ConfigError` where a pattern matches nothing.
    """

    def __init__(self, config: TensorStatisticsRecorderConfig, learner: Learner) -> None:
        self._interval = config.interval
        self._learner = learner
        self._watched = watched_modules(
            learner.module.layers(), usual=usual_placement(learner.topology), with_type=config.include_module_type
        )
        names: list[str] = learner.topology.agree("names of statistics", self._names(), joined_names)
        self._recorder = TensorStatisticsRecorder(chosen(names, config), learner.topology)
        self._settled = False
        self._watch = self._watching()
        self._factor: Tensor | None = None
        self._step = contextlib.ExitStack()

    def before_step(self, trainer: TrainerView) -> None:
        """Record the weights of a step that is due, and watch the outputs of its modules."""
        if not due(trainer.state.step + 1, self._interval):
            return
        for tensor in self._learner.module.global_tensors():
            self._record(PARAMETERS, tensor)
        self._step.enter_context(self._learner.module.uncompiled())
        self._step.enter_context(self._observing())
        self._watch.open()
        self._step.callback(self._watch.close)

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        """Merge the records of all ranks, and pass them to the metrics."""
        if self._factor is None:
            return
        factor, self._factor = self._factor, None
        self._step.close()
        if not self._settled:
            self._settle()
        values = self._recorder.merged(factor)
        trainer.metrics.add_vector(trainer.state.step, [METRIC + name for name in self._recorder.names], values)

    def on_exit(self, trainer: TrainerView, error: BaseException | None) -> None:
        """Restore the model as it was."""
        self._step.close()

    def _names(self) -> list[str]:
        """Return the names that this rank's layers can record; of ranks with the same layers, only one returns any."""
        topology, module = self._learner.topology, self._learner.module
        if topology.index(*(axis for axis in Axis if axis is not Axis.PIPE)):
            return []
        trained = self._learner.trained
        parameters = list(module.parameters_with_meta())
        return [
            *(PARAMETERS + piece.key for _, description in parameters for piece in description.pieces),
            *(
                PARAMETER_GRADIENTS + piece.key
                for parameter, description in parameters
                if parameter in trained
                for piece in description.pieces
            ),
            *(name for watched in self._watched for name in names_of(watched)),
        ]

    def _watching(self) -> ActivationWatch:
        return ActivationWatch(
            self._watched,
            self._learner.topology,
            names=self._recorder.statistics,
            record=self._take,
            compares=not self._settled,
        )

    def _take(self, name: str, part: Tensor) -> None:
        self._recorder.record(name, part)

    def _record(self, kind: str, tensor: GlobalTensor) -> None:
        if tensor.owned:
            for _, values in tensor.parts:
                self._recorder.record(kind + tensor.key, values)

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        """Observe the gradients of weights within the context, after an earlier observer, if any."""
        optimizer = self._learner.optimizer
        before = optimizer.observer

        def observe(gradients: Iterator[GlobalTensor], factor: Tensor) -> None:
            held = list(gradients)
            if before is not None:
                before(iter(held), factor)
            for tensor in held:
                self._record(PARAMETER_GRADIENTS, tensor)
            self._factor = factor

        optimizer.observer = observe
        try:
            yield
        finally:
            optimizer.observer = before

    def _settle(self) -> None:
        """Drop names without a value in the first recorded step, such as gradients where nothing is trained.

        Collective: all ranks, over the store.
        """
        topology, recorder = self._learner.topology, self._recorder
        others = topology.index(*(axis for axis in Axis if axis is not Axis.PIPE))
        mine = [] if others else [name for name in recorder.seen if name.startswith(_OF_MODULES)]
        seen = set(topology.agree("recorded activations", mine, joined_names))
        differing = self._watch.differing()
        self._warn_of(topology.agree("differing activations", [] if others else differing, joined_names))
        kept = [name for name in recorder.statistics if name in seen or not name.startswith(_OF_MODULES)]
        self._recorder = recorder.narrowed(kept)
        self._settled = True
        self._watch = self._watching()

    def _warn_of(self, differing: Sequence[str]) -> None:
        """Warn of activations whose statistics are those of one model rank only."""
        if differing and self._learner.topology.rank == 0:
            _log.warning(
                "model ranks return different values, of which statistics are those of the first rank only: %s; if "
                "each has a part of the features, let the module say so (described_outputs, docs/statistics.md)",
                first_of(differing, _SHOWN),
            )
