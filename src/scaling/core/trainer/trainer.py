"""Trainer: the loop. Train, log, evaluate, save, resume, leave when asked."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, final

import torch

from scaling.core import faults
from scaling.core.boxes import GlobalTensor
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.collectives import ops
from scaling.core.errors import DataRefusedError, ScalingError, StorageError
from scaling.core.optimizer.optimizer import MASTERS, Optimizer, StepReport
from scaling.core.pipeline.loss import LossFunction, StepLoss
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.rng import derive_seed
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.data import TrainingData
from scaling.core.trainer.differences import compare_settings, list_idle_patterns, list_parameters
from scaling.core.trainer.hardware import peak_flops
from scaling.core.trainer.hooks import TrainerHook
from scaling.core.trainer.origin import find_origin
from scaling.core.trainer.preemption import Preemption
from scaling.core.trainer.state import Metrics, RunIdentity, TrainState, Unopened, due

_log = logging.getLogger(__name__)

MAX_FAILED_SAVES: Final = 5
"""So many saves that fail in a row end the run: it would go on for nothing."""

_TRIED_AGAIN: Final = "the next save tries again"


@final
class Trainer:
    """Drives model, optimizer, data and checkpoints to `train_iterations`. Every method is collective: all ranks.

    `tokens_per_sample` turns samples into tokens in the metrics (None: samples are counted). `flops_per_sample` gives
    the share of the GPU's peak rate that is used. `open_metrics` is called with the step the run goes on from, once
    that is known.
    """

    def __init__(
        self,
        config: TrainerConfig,
        topology: Topology,
        *,
        module: ParallelModule,
        optimizer: Optimizer,
        loss_function: LossFunction,
        data: TrainingData,
        checkpointer: Checkpointer,
        open_metrics: Callable[[int], Metrics],
        identity: RunIdentity,
        tokens_per_sample: int | None = None,
        flops_per_sample: float | None = None,
        hooks: Sequence[TrainerHook] = (),
    ) -> None:
        self.config = config
        self.topology = topology
        self.module = module
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.data = data
        self.checkpointer = checkpointer
        self._open_metrics = open_metrics
        self.metrics: Metrics = Unopened()
        self.identity = identity
        self.tokens_per_sample = tokens_per_sample
        self.flops_per_sample = flops_per_sample
        self.hooks = tuple(hooks)
        self.state = TrainState()
        self.preempted: str | None = None
        """Why training ended early: the signal's name; None when it ran to the end."""
        self._nonfinite = torch.zeros((), dtype=torch.float64, device=topology.device)
        self._saved_step: int | None = None
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
            preemption = listening.enter_context(Preemption())
            resumed = self.resume()
            if self.state.step >= self.target:
                self._tell_idle(resumed=resumed)
            self.metrics = self._open_metrics(self.state.step)
            self._clock = time.perf_counter()
            while self.state.step < self.target and self.preempted is None:
                self.step()
                if due(self.state.step, self.config.log_interval) or self.state.step == self.target:
                    self._synchronise(preemption)
                if due(self.state.step, self.config.eval_interval):
                    self.evaluate()
                if due(self.state.step, self.config.save_interval):
                    self.save()
                collect(self.state.step)
            if self.config.final_save or self.preempted is not None:
                self.save()
            with self._bearing(None):
                self.checkpointer.wait()
            self._tell_where()
            if self.preempted is not None and self.topology.world is not None:
                # The signal that others had first may come now, and must not end a rank that they still talk to.
                self.topology.leaving.enter_context(listening.pop_all())

    def step(self) -> StepReport:
        """Train on one global batch. The host waits for nothing."""
        step = self.state.step + 1
        for hook in self.hooks:
            hook.before_step(self)
        faults.point("step.before_forward")
        self.topology.rng.seed(derive_seed(self.config.seed, "step", step))  # so there is no state to save
        loss = self.module.train_step(
            self.data.training, self.loss_function, gradient_scale=self.optimizer.gradient_scale
        )
        faults.point("step.after_backward")
        report = self.optimizer.step(step, weight=loss.weight)
        faults.point("step.after_optimizer")
        self.state.advance(samples=self.data.geometry.global_batch_size)
        self._steps_since_log += 1
        self._nonfinite = (self._nonfinite + 1) * report.overflow
        self.metrics.add(step, self._step_metrics(loss, report))
        for hook in self.hooks:
            hook.after_step(self, report)
        return report

    def evaluate(self) -> StepLoss | None:
        """Return the loss over the validation set, every sample counted once in every layout; None without one."""
        steps = self.data.evaluation_steps()
        if steps == 0:
            return None
        total = StepLoss(self.topology)
        batches = self.data.evaluation()
        for _ in range(steps):
            faults.point("eval.batch")
            total.merge(self.module.eval_step(batches, self.loss_function))
        loss = float(total.loss)
        values = {name: float(value) for name, value in total.metrics().items()}
        perplexity = math.exp(loss) if loss < 700 else math.inf
        evaluation = {"loss": loss, **({"perplexity": perplexity} if self.tokens_per_sample else {}), **values}
        self.metrics.add(self.state.step, {f"evaluation/{name}": value for name, value in evaluation.items()})
        self.metrics.flush()
        self._clock = time.perf_counter()  # the next step's duration is its own
        return total

    def save(self) -> None:
        """Save a checkpoint of the present step, once. A full disk does not end the run; the next save tries again."""
        if self.config.save_dir is None or self._saved_step == self.state.step:
            return
        scalars = {
            "trainer": self.state.as_dict(),
            "optimizer": self.optimizer.state(),
            "config": self.identity.as_dict(),
        }
        with self._bearing(_TRIED_AGAIN):
            self.checkpointer.wait()  # for the one before, if it is written in the background
        with self._bearing(self._after_a_failed_save()):
            self.checkpointer.save(self.state.step, self.global_tensors(), scalars)
            self._saved_step = self.state.step
        self._clock = time.perf_counter()

    def _tell_where(self) -> None:
        """Name the checkpoint that the run ended with."""
        report = self.checkpointer.last_report
        if report is not None and report.path is not None and report.step == self.state.step:
            how = "saved %s" if self.preempted is None else "saved %s; the same command goes on from there"
            self._tell(logging.INFO, how, report.path)

    def _after_a_failed_save(self) -> str | None:
        """Say what follows if a save fails now; None where the run is over."""
        if self.state.step >= self.target or self.preempted is not None:
            return None
        interval = self.config.save_interval
        is_due = interval is not None and (self.state.step // interval + 1) * interval <= self.target
        return _TRIED_AGAIN if self.config.final_save or is_due else "no other save is due"

    @contextlib.contextmanager
    def _bearing(self, then: str | None) -> Iterator[None]:
        """Go on without a checkpoint that was not written, unless the run is over or it was tried often enough."""
        try:
            yield
        except StorageError as error:
            failures, untouched = self.checkpointer.failures, "earlier checkpoints are untouched"
            if then is None:
                raise StorageError(f"{error}; {untouched}") from error
            if failures >= MAX_FAILED_SAVES:
                limit = f"that was the last of {failures} saves in a row that failed, so the run ends"
                raise StorageError(f"{error}; {limit}; {untouched}") from error
            text = "a checkpoint was not written, training goes on: %s; %s; %s"
            self._tell(logging.ERROR, text, error, untouched, then)

    def resume(self) -> bool:
        """Continue from the newest checkpoint of this run, or start from `load_dir`. Return whether there was one."""
        origin = find_origin(self.config, self.checkpointer, tell=self._tell)
        if origin is None:
            return False
        stored = origin.stored
        scalars: Any = stored.manifest.scalars
        compare_settings(
            scalars.get("config"),
            self.identity,
            self.config.accept_changes,
            continues=origin.with_context,
            tell=self._tell,
        )
        tensors = self.global_tensors() if origin.with_optimizer else self.module.global_tensors()
        loaded = self.checkpointer.load(
            stored,
            tensors,
            allowed_missing=tuple(self.config.allowed_missing_keys_in_checkpoint or ()),
            allowed_unexpected=(*(self.config.allowed_unexpected_keys_in_checkpoint or ()), r"^optimizer\."),
            ignore=origin.ignored,
            masters=MASTERS if origin.with_optimizer else None,
        )
        list_parameters(loaded, tell=self._tell)
        list_idle_patterns(origin, loaded, self.config, tell=self._tell)
        if origin.with_optimizer:
            self.optimizer.restore(scalars["optimizer"])
        else:
            self.optimizer.refresh()
        if origin.with_context:
            self.state.restore(scalars["trainer"])
            self.data.seek(self.state.consumed_samples)
            self._saved_step = self.state.step if origin.own else None
        _log.info("resumed from %s at step %d", loaded.path, self.state.step)
        return True

    def global_tensors(self) -> Iterator[GlobalTensor]:
        """Yield this rank's parts of everything a checkpoint holds."""
        return itertools.chain(self.module.global_tensors(), self.optimizer.global_tensors())

    def _tell_idle(self, *, resumed: bool) -> None:
        """Say that no step is trained, and which setting is why."""
        what = "nothing is left to train" if resumed else "nothing is trained"
        steps = self.config.train_iterations
        why = "null; set it to the number of steps" if steps is None else f"{steps}; raise it to go on"
        self._tell(logging.WARNING, "%s: trainer.train_iterations is %s", what, why)

    def _tell(self, level: int, text: str, *values: object) -> None:
        """Log what is the same on all ranks, once."""
        if self.topology.rank == 0:
            _log.log(level, text, *values)

    def _step_metrics(self, loss: StepLoss, report: StepReport) -> dict[str, float | torch.Tensor]:
        found: dict[str, float | torch.Tensor] = {
            "training/loss": loss.loss,
            "training/global_grad_norm": report.global_grad_norm,
            "training/consumed_samples": self.state.consumed_samples,
        }
        if self.tokens_per_sample is not None:
            found["training/consumed_tokens"] = self.state.consumed_samples * self.tokens_per_sample
        found.update({f"training/learning_rate_{name}": rate for name, rate in report.learning_rates.items()})
        found.update({f"training/{name}": value for name, value in loss.metrics().items()})
        if self.optimizer.loss_scaler.enabled:
            found.update({"training/loss_scale": report.loss_scale, "training/overflow": report.overflow})
        return found

    def _synchronise(self, preemption: Preemption) -> None:
        """Wait for the device, agree on what only the host knows, and write the metrics: the only wait of the loop."""
        local = [float(preemption()), float(self._peak_memory())]
        agreed = torch.tensor(local, dtype=torch.float64, device=self.topology.device)
        stop, peak, nonfinite = torch.cat(
            [ops.all_reduce(agreed, self.topology.world, maximum=True), self._nonfinite.view(1)]
        ).tolist()
        now = time.perf_counter()
        duration = (now - self._clock) / self._steps_since_log
        samples = self.data.geometry.global_batch_size / duration
        rate = (
            {"training/samples_per_second": samples}
            if self.tokens_per_sample is None
            else {"training/tokens_per_second": samples * self.tokens_per_sample}
        )
        peak_rate = peak_flops(self.topology.device)
        if self.flops_per_sample is not None and peak_rate is not None:
            rate["training/mfu"] = samples * self.flops_per_sample / (peak_rate * self.topology.layout.world_size)
        epochs = self.data.epochs(self.state.consumed_samples)
        self.metrics.add(
            self.state.step, {"training/step_duration": duration, **rate, **epochs, "training/peak_memory_bytes": peak}
        )
        self.metrics.flush()
        self._clock, self._steps_since_log = now, 0
        if stop:
            self.preempted = preemption.reason or "a signal to another rank"
            what = "saving" if self.config.save_dir is not None else "nothing is saved, trainer.save_dir is null"
            self._tell(logging.WARNING, "asked to leave (%s) after step %d: %s", self.preempted, self.state.step, what)
        patience = self.config.max_consecutive_nonfinite_steps
        if nonfinite > patience and not self.optimizer.loss_scaler.enabled:
            raise DataRefusedError(
                f"the gradients of {int(nonfinite)} steps in a row, up to step {self.state.step}, were not finite "
                f"(their updates were skipped), more than trainer.max_consecutive_nonfinite_steps ({patience}) allows; "
                "lower the learning rate or look at the data of these steps"
            )

    def _peak_memory(self) -> int:
        if self.topology.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.topology.device)
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

    def _finish_saving(self) -> None:
        """Do not lose the checkpoint that is being written in the background to an error of the training."""
        try:
            self.checkpointer.wait()
        except ScalingError as error:
            _log.error("the last checkpoint was not written either: %s", error)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            if isinstance(caught, ScalingError):  # raised on all ranks alike, so none waits for one that is gone
                self._finish_saving()
            raise
        finally:
            for hook in self.hooks:
                hook.on_exit(self, error)
            self.metrics.close()
            self.data.close()
            self.optimizer.close()


class _Collect:
    """Collects Python's garbage at chosen steps, so that all ranks pause together."""

    def __init__(self, interval: int) -> None:
        self._interval = interval

    def __call__(self, step: int) -> None:
        if self._interval and step % self._interval == 0:
            gc.collect(1)


@contextlib.contextmanager
def garbage_collected(interval: int) -> Iterator[_Collect]:
    """Take garbage collection into the trainer's hands inside the context: a full scan costs hundreds of milliseconds.

    `interval` 0 leaves it to Python.
    """
    if interval and gc.isenabled():
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            yield _Collect(interval)
        finally:
            gc.unfreeze()
            gc.enable()
    else:
        yield _Collect(0)
