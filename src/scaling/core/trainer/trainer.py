"""Trainer: the loop. Train, log, evaluate, save, resume, leave when asked."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from scaling.core.checkpoint.base import BASE, BaseReference
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.save import SaveReport
from scaling.core.collectives import ops
from scaling.core.errors import AskedToLeave, ScalingError, StorageError
from scaling.core.logging.events import EventLog
from scaling.core.optimizer.lr_schedule import steps_at_zero
from scaling.core.optimizer.optimizer import StepReport
from scaling.core.pipeline.loss import StepLoss
from scaling.core.storage.json_values import Json
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.finite import FiniteWatch
from scaling.core.trainer.garbage import garbage_collected
from scaling.core.trainer.hardware import peak_flops, peak_memory
from scaling.core.trainer.hooks import TrainerHook
from scaling.core.trainer.origin import find_origin
from scaling.core.trainer.preemption import Preemption
from scaling.core.trainer.start import Start
from scaling.core.trainer.state import Metrics, NoMetrics, RunIdentity, TrainState, due
from scaling.core.trainer.telling import checkpoint_saved, leaving, save_failed
from scaling.core.training.learner import Learner
from scaling.core.waiting import waits

_log = logging.getLogger(__name__)

MAX_FAILED_SAVES: Final = 5
"""This many failed saves in a row end the run: its further work would be lost."""

_TRIED_AGAIN: Final = "the next save tries again"


@final
class Trainer:
    """The loop that drives a learner to `train_iterations`, and decides when to log, evaluate, save and leave.

    Every method is collective: all ranks. `open_metrics` is called with the step that the run continues from, once it
    is known.
    """

    def __init__(
        self,
        config: TrainerConfig,
        learner: Learner,
        *,
        identity: RunIdentity,
        checkpointer: Checkpointer,
        open_metrics: Callable[[int], Metrics],
        hooks: Sequence[TrainerHook] = (),
        events: EventLog | None = None,
    ) -> None:
        self.config = config
        self.learner = learner
        self.identity = identity
        self.checkpointer = checkpointer
        self._open_metrics = open_metrics
        self.metrics: Metrics = NoMetrics()
        self.hooks = tuple(hooks)
        if events is None:
            events = EventLog(rank=learner.topology.rank, total_steps=config.train_iterations or 0)
        self._events = events
        self.state = TrainState()
        self.preempted: str | None = None
        """Why training ended early: the signal's name; None when it ran to the end."""
        self.resumed_from: Path | None = None
        """The checkpoint that the run resumes from, or begins with; None where it begins with initial values."""
        self._topology = learner.topology
        self._finite = FiniteWatch(learner, patience=config.max_consecutive_nonfinite_steps, log_once=self._log_once)
        self._saved_step: int | None = None
        self._base: BaseReference | None = None
        self._clock = time.perf_counter()
        self._steps_since_log = 0

    @property
    def target(self) -> int:
        """Return the step at which training ends."""
        return self.config.train_iterations or 0

    def fit(self) -> None:
        """Resume where there is something to resume from, then train to the end or until asked to leave."""
        with (
            self._closing(),
            garbage_collected(self.config.gc_interval) as collect,
            contextlib.ExitStack() as listening,
        ):
            gate = self._topology.gate
            preemption = listening.enter_context(Preemption(gate=gate))
            with gate.interruption():
                resumed = self.resume()
            self.learner.module.engine.gate = gate
            if self.state.step >= self.target:
                self._warn_of_nothing_to_train(resumed=resumed)
            else:
                self._wait_for_data()
            self._warn_of_few_data()
            if resumed:  # a new run has a note already; for a longer one it may be a surprise
                self._warn_of_rate_zero()
            started = self.state.step
            self.metrics = self._open_metrics(started)
            self.learner.data.take_waited()  # drops the wait for the first micro-batch, which is no part of a step
            self._clock = time.perf_counter()
            try:
                gate.pass_through()  # from here on there is something to save
                while self.state.step < self.target and self.preempted is None:
                    self._advance(preemption)
                    collect(self.state.step)
            except AskedToLeave as asked:  # on all ranks, after the same micro-batch
                self._note_preemption(asked.args[0])
            if self.config.final_save or self.preempted is not None:
                self.save()
            with self._tolerating_failed_save(None):
                self._tell_of_save(self.checkpointer.wait())
            if self.preempted is None and self.state.step > started:
                self._finite.require_good_end(self.state.step)
            if self.preempted is not None and self._topology.world is not None:
                # The signal may reach this rank after others; it must not end a rank that they still communicate with.
                self._topology.leaving.enter_context(listening.pop_all())

    def _wait_for_data(self) -> None:
        """Wait until all ranks have their first micro-batch; before that, there is nothing to save."""
        with self._topology.gate.interruption():
            self.learner.data.wait()
            self._topology.agree("first data", None, len)

    def _advance(self, preemption: Preemption) -> None:
        """Train a step, and do what is due after it."""
        self._topology.gate.pass_through()
        self.step()
        if due(self.state.step, self.config.log_interval) or self.state.step == self.target:
            self._synchronise(preemption)
        if due(self.state.step, self.config.eval_interval) and self.preempted is None:
            self.evaluate()
        if due(self.state.step, self.config.save_interval):
            self.save()

    def step(self) -> StepReport:
        """Train on one global batch. The host waits for nothing."""
        step = self.state.step + 1
        self._topology.gate.step = step
        for hook in self.hooks:
            hook.before_step(self)
        loss, report = self.learner.step(step)
        self.state.advance(samples=self.learner.samples_per_step)
        self._steps_since_log += 1
        self._finite.note(loss.loss, report)
        self.metrics.add(step, self._step_metrics(loss, report))
        for hook in self.hooks:
            hook.after_step(self, report)
        return report

    def evaluate(self) -> StepLoss | None:
        """Return the loss over the validation set, every sample counted once in every layout; None without one."""
        if not self.learner.data.evaluation_steps(self.config.eval_iterations):
            return None
        began = time.perf_counter()
        for hook in self.hooks:
            hook.before_evaluation(self)
        total = self.learner.evaluate(limit=self.config.eval_iterations)
        assert total is not None  # there are steps
        for hook in self.hooks:
            hook.after_evaluation(self, total)
        loss = float(total.loss)
        values = {name: float(value) for name, value in total.metrics().items()}
        perplexity = math.exp(loss) if loss < 700 else math.inf
        tokens = self.learner.recipe.tokens_per_sample
        evaluation = {"loss": loss, **({"perplexity": perplexity} if tokens else {}), **values}
        self.metrics.add(self.state.step, {f"evaluation/{name}": value for name, value in evaluation.items()})
        self._write_metrics()
        self._finite.judge_evaluation(loss, step=self.state.step)
        self._clock += time.perf_counter() - began  # no part of a step's duration
        return total

    def save(self) -> None:
        """Save a checkpoint of the present step, once. A full disk does not end the run; the next save tries again."""
        if self.config.save_dir is None or self._saved_step == self.state.step:
            return
        began = time.perf_counter()
        for hook in self.hooks:
            hook.before_save(self)
        scalars: dict[str, Json] = {
            "trainer": self.state.as_dict(),
            "optimizer": self.learner.optimizer.state(),
            "config": self.identity.as_dict(),
        }
        if self.learner.recipe.on_base:
            scalars[BASE] = None if self._base is None else self._base.as_dict()
        self._finite.require_weights(self.state.step)
        with self._tolerating_failed_save(_TRIED_AGAIN):
            self._tell_of_save(self.checkpointer.wait())  # the previous one, if it is still being written
        folder = None
        with self._tolerating_failed_save(self._after_a_failed_save()):
            tensors, packed = self.learner.global_tensors(), self.learner.recipe.on_base
            folder = self.checkpointer.save(self.state.step, tensors, scalars, packed=packed)
            self._saved_step = self.state.step
        if folder is not None:
            self._tell_of_save(self.checkpointer.last_report)
        for hook in self.hooks:
            hook.after_save(self, folder)
        self._clock += time.perf_counter() - began

    def _write_metrics(self) -> None:
        written = self.metrics.flush()
        for hook in self.hooks:
            hook.after_log(self, written)

    def _tell_of_save(self, report: SaveReport | None) -> None:
        """Report a checkpoint that is complete."""
        if report is not None and report.path is not None:
            self._events.tell(checkpoint_saved(report))

    def _after_a_failed_save(self) -> str | None:
        """Return what follows if a save fails now; None where the run is over."""
        if self.state.step >= self.target or self.preempted is not None:
            return None
        interval = self.config.save_interval
        is_due = interval is not None and (self.state.step // interval + 1) * interval <= self.target
        return _TRIED_AGAIN if self.config.final_save or is_due else "no other save is due"

    @contextlib.contextmanager
    def _tolerating_failed_save(self, then: str | None) -> Iterator[None]:
        """Continue without a checkpoint that was not written, unless the run is over or too many saves have failed."""
        try:
            yield
        except StorageError as error:
            failures, untouched = self.checkpointer.failures, "earlier checkpoints are untouched"
            if then is None:
                raise StorageError(f"{error}; {untouched}") from error
            if failures >= MAX_FAILED_SAVES:
                limit = f"that was the last of {failures} saves in a row that failed, so the run ends"
                raise StorageError(f"{error}; {limit}; {untouched}") from error
            self._events.tell(save_failed(self.state.step, error, then=f"{untouched}; {then}"))

    def resume(self) -> bool:
        """Resume from the newest checkpoint of this run, or start from `load_dir`. Return whether either was found."""
        on_base = self.learner.recipe.on_base
        if self.config.map_base and not on_base:
            text = "trainer.map_base has no effect: the run trains no method of fine-tuning, so it has no base"
            self._log_once(logging.WARNING, text)
        origin = find_origin(self.config, self.checkpointer, on_base=on_base, log_once=self._log_once)
        if origin is None:
            return False
        start = Start(
            learner=self.learner,
            checkpointer=self.checkpointer,
            config=self.config,
            identity=self.identity,
            log_once=self._log_once,
        )
        self._base = start.load(origin)
        self.resumed_from = origin.stored.path
        if origin.with_context:
            scalars: Any = origin.stored.manifest.scalars
            self.state.restore(scalars["trainer"])
            self.learner.seek(self.state.consumed_samples)
            self._saved_step = self.state.step if origin.own else None
        if not origin.is_base:
            _log.info("resumed from %s at step %d", origin.stored.path, self.state.step)
        return True

    def _warn_of_nothing_to_train(self, *, resumed: bool) -> None:
        """Warn that no step is trained, and name the setting that is the reason."""
        what = "nothing is left to train" if resumed else "nothing is trained"
        steps = self.config.train_iterations
        why = "null; set it to the number of steps" if steps is None else f"{steps}; raise it to go on"
        self._log_once(logging.WARNING, "%s: trainer.train_iterations is %s", what, why)

    def _warn_of_few_data(self) -> None:
        """Warn where a step sees samples more than once, which is never intended."""
        samples = self.learner.samples_per_step
        for name, epochs in self.learner.data.epochs(samples).items():
            if epochs > 1:
                text = "a step goes through the training data %.3g times (%s): topology.global_batch_size is %d; %s"
                self._log_once(logging.WARNING, text, epochs, name, samples, "lower it, or give more data")

    def _warn_of_rate_zero(self) -> None:
        """Warn where the last steps change nothing because the learning rate decays to 0 before training ends."""
        for group in self.learner.optimizer.groups:
            if idle := steps_at_zero(group.learning_rate_scheduler, self.target):
                end = group.learning_rate_scheduler.learning_rate_decay_iters
                text = (
                    "group %s: the learning rate is 0 from step %d (learning_rate_decay_iters) on, but training ends "
                )
                text += "at step %d (trainer.train_iterations): the last %d steps change nothing; raise the former too"
                self._log_once(logging.WARNING, text, group.name, end, self.target, idle)

    def _log_once(self, level: int, text: str, *values: object) -> None:
        """Log, on one rank, a message that is the same on all."""
        if self._topology.rank == 0:
            _log.log(level, text, *values)

    def _step_metrics(self, loss: StepLoss, report: StepReport) -> dict[str, float | torch.Tensor]:
        found: dict[str, float | torch.Tensor] = {
            "training/loss": loss.loss,
            "training/global_grad_norm": report.global_grad_norm,
            "training/consumed_samples": self.state.consumed_samples,
        }
        if (tokens := self.learner.recipe.tokens_per_sample) is not None:
            found["training/consumed_tokens"] = self.state.consumed_samples * tokens
        found.update({f"training/learning_rate_{name}": rate for name, rate in report.learning_rates.items()})
        found.update({f"training/{name}": value for name, value in loss.metrics().items()})
        if self.learner.optimizer.loss_scaler.enabled:
            found.update({"training/loss_scale": report.loss_scale, "training/overflow": report.overflow})
        return found

    @waits
    def _maxima(self, values: Tensor) -> list[float]:
        """Return the maxima over all ranks, for which the host waits."""
        maxima: list[float] = ops.all_reduce(values, self._topology.world, maximum=True).tolist()
        return maxima

    def _synchronise(self, preemption: Preemption) -> None:
        """Wait for the device, agree on what only the host knows, and write the metrics: the only wait of the loop."""
        local = [float(preemption()), float(peak_memory(self._topology.device)), self.learner.data.take_waited()]
        agreed = torch.tensor(local, dtype=torch.float64, device=self._topology.device)
        stop, peak, waited, gradients, losses = self._maxima(torch.cat([agreed, self._finite.streaks]))
        now = time.perf_counter()
        duration = (now - self._clock) / self._steps_since_log
        samples = self.learner.samples_per_step / duration
        tokens, flops = self.learner.recipe.tokens_per_sample, self.learner.recipe.flops_per_sample
        rate = (
            {"training/samples_per_second": samples}
            if tokens is None
            else {"training/tokens_per_second": samples * tokens}
        )
        peak_rate = peak_flops(self._topology.device)
        if flops is not None and peak_rate is not None:
            rate["training/mfu"] = samples * flops / (peak_rate * self._topology.layout.world_size)
        epochs = self.learner.data.epochs(self.state.consumed_samples)
        measured = {
            "training/step_duration": duration,
            **rate,
            **epochs,
            "training/peak_memory_bytes": peak,
            "training/data_wait_fraction": min(1.0, waited / (duration * self._steps_since_log)),
        }
        self.metrics.add(self.state.step, measured)
        self._write_metrics()
        self._clock, self._steps_since_log = now, 0
        if stop:
            self._note_preemption(preemption.reason)
        self._finite.judge(gradients, losses, step=self.state.step)

    def _note_preemption(self, reason: str | None) -> None:
        """Record that the ranks leave, and report it."""
        if self.preempted is None:
            self.preempted = reason or "a signal to another rank"
            saves = self.config.save_dir is not None
            self._events.tell(leaving(self.state.step, self.preempted, saves=saves))

    def _finish_saving(self) -> None:
        """Wait for the save in the background, so that an error of the training does not lose its checkpoint."""
        try:
            self._tell_of_save(self.checkpointer.wait())
        except ScalingError as error:
            _log.error("the last checkpoint was not written either: %s", error)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            if isinstance(caught, ScalingError):  # raised on all ranks, so none waits for one that is gone
                self._finish_saving()
            raise
        finally:
            for hook in self.hooks:
                hook.on_exit(self, error)
            self.metrics.close()
            self.learner.close()
