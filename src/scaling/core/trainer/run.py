"""One training run from a learner to an exit status: metrics, run files, checkpoints and the trainer around it."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Alone, Communicator, StoreCommunicator
from scaling.core.checkpoint.folders import Retention
from scaling.core.errors import ConfigError, ExitStatus, Problem, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.events import EventLog
from scaling.core.logging.metrics import MetricSink, MetricWriter
from scaling.core.logging.provenance import write_run_files
from scaling.core.logging.run_state import RunPhase, RunStateRecorder
from scaling.core.logging.sinks import open_sinks, prints_metrics
from scaling.core.logging.summary import Summary
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.storage.lock import locked
from scaling.core.topology.launch import LaunchContext
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology, first_given
from scaling.core.trainer.builtin_hooks import builtin_hooks, statistics_hooks
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.hooks import TrainerHook
from scaling.core.trainer.state import RunIdentity
from scaling.core.trainer.telling import described, started
from scaling.core.trainer.trainer import Trainer
from scaling.core.training.learner import Learner

_log = logging.getLogger(__name__)


class RunSections(Protocol):
    """The sections of a configuration that control a run; `RunConfig` has them."""

    @property
    def trainer(self) -> TrainerConfig:
        """Return the length of the training, evaluation and checkpoints."""
        ...

    @property
    def logger(self) -> LoggerConfig:
        """Return what is logged, and where to."""
        ...

    @property
    def profiler(self) -> ProfilerConfig:
        """Return which steps are timed."""
        ...


def run_training(
    config: RunSections,
    learner: Learner,
    identity: RunIdentity,
    *,
    hooks: Sequence[TrainerHook] = (),
    sinks: Sequence[MetricSink] = (),
    once_resumed: Callable[[], None] | None = None,
    next_commands: Sequence[str] = (),
) -> ExitStatus:
    """Train to the end, or until asked to leave, and return the exit status of the process. Collective: all ranks.

    Writes metrics, the resolved configuration, versions and the state of the run below `logger.log_dir`, checkpoints
    below `trainer.save_dir`. Errors pass through, recorded in run_state.json. `sinks` get this rank's metrics in
    addition to the sinks of the configuration, and are closed at the end; pass them on rank 0. `once_resumed` is called
    before the first step, when it is certain that the checkpoints in `save_dir` are this run's own. `next_commands` are
    the commands that the summary of a finished training suggests, the most important first; without any, it suggests
    the report of `logger.log_dir`.
    """
    topology = learner.topology
    if learner.recipe.seed != config.trainer.seed:
        raise ConfigError(
            Problem(
                "trainer.seed",
                f"is {config.trainer.seed}, but the program's recipe has seed {learner.recipe.seed}; make it with "
                "Recipe(seed=config.trainer.seed, ...)",
            )
        )
    folders = {"trainer.save_dir": config.trainer.save_dir, "logger.log_dir": config.logger.log_dir}
    with (  # the locks first: a run that is refused must not write over the log of the one that has them
        alone_in(folders, topology),
        RunStateRecorder(config.logger.log_dir, rank=topology.rank) as recorder,
        EventLog(
            config.logger.log_dir,
            rank=topology.rank,
            total_steps=config.trainer.train_iterations or 0,
            prints_metrics=prints_metrics(config.logger, topology.rank),
        ) as events,
    ):
        attempt = LaunchContext.from_environment().attempt
        summary = Summary()
        if topology.rank == 0:
            _log.info("%s", described(learner))
        sizes = {axis.value: topology.size(axis) for axis in Axis}
        write_run_files(
            config.logger.log_dir,
            identity.config,
            layout=sizes,
            data_fingerprint=identity.fingerprints.get("data"),
            rank=topology.rank,
            attempt=attempt,
        )

        def open_metrics(resumed_step: int) -> MetricWriter:
            if once_resumed is not None:
                once_resumed()
            events.tell(
                started(
                    resumed_step,
                    attempt=attempt + 1,
                    resumed_from=trainer.resumed_from,
                    total_steps=trainer.target,
                    world_size=topology.layout.world_size,
                )
            )
            summary.begin(resumed_step)
            opened = open_sinks(
                config.logger,
                rank=topology.rank,
                positions={axis.value: topology.index(axis) for axis in Axis},
                resumed_step=resumed_step,
                total_steps=config.trainer.train_iterations or 0,
                run_config=identity.config.as_dict(),
            )
            told = [summary, events] if topology.rank == 0 else [events]
            asked = [*opened, *sinks]
            return MetricWriter([*told, *asked] if topology.rank == 0 or asked else [])

        _require_writable(config.trainer.save_dir, topology)
        checkpointer = Checkpointer(
            config.trainer.save_dir,
            communicator=communicator(topology),
            retention=Retention(
                keep_last=config.trainer.keep_last_checkpoints,
                keep_every=config.trainer.keep_every_steps,
                keep_optimizer_last=1 if config.trainer.delete_past_optimizer_states else None,
            ),
            asynchronous=config.trainer.save_async,
            information={"layout": sizes},
        )
        trainer = Trainer(
            config.trainer,
            learner,
            identity=identity,
            checkpointer=checkpointer,
            open_metrics=open_metrics,
            hooks=[
                *hooks,
                *statistics_hooks(config.trainer, learner),
                *builtin_hooks(config.profiler, config.logger, recorder, topology),
            ],
            events=events,
        )
        trainer.fit()
        step, report = trainer.state.step, checkpointer.last_report
        saved = None if report is None or report.step != step else report.path
        if topology.rank == 0:
            _sum_up(summary, trainer, saved, config.logger.log_dir, next_commands)
        if trainer.preempted is None:
            events.end(step, RunPhase.FINISHED)
            recorder.finished(step)
            return ExitStatus.DONE
        what = "saved" if config.trainer.save_dir is not None else "nothing saved: trainer.save_dir is null"
        reason = f"{trainer.preempted}, {what}"
        events.end(step, RunPhase.PREEMPTED, reason)
        recorder.preempted(step, reason)
        return ExitStatus.PREEMPTED


def _sum_up(
    summary: Summary, trainer: Trainer, saved: Path | None, log_dir: Path | None, next_commands: Sequence[str]
) -> None:
    """Log a summary of the training, if it has trained any steps."""
    if not summary.steps:
        return
    outcome = RunPhase.FINISHED
    if trainer.preempted is not None:
        outcome = RunPhase.PREEMPTED
        next_commands = [] if saved is None else ["the same command goes on from there"]
    elif not next_commands and log_dir is not None:
        next_commands = [f"scaling report {shlex.quote(str(log_dir))}"]
    lines = summary.lines(outcome=outcome.value, checkpoint=saved, log_dir=log_dir, next_commands=next_commands)
    for line in lines:
        _log.info("%s", line)


def _require_writable(save_dir: Path | None, topology: Topology) -> None:
    """Refuse a folder that cannot be written to now, not only at the first save. Collective: all ranks."""
    if save_dir is None:
        return
    problem = None
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir):
            pass
    except OSError as error:
        problem = str(error)
    problem = topology.agree("save_dir", problem, first_given)
    if problem is not None:
        raise StorageError(f"{save_dir} cannot be written ({problem}); set trainer.save_dir to another folder")


@contextmanager
def alone_in(folders: Mapping[str, Path | None], topology: Topology) -> Iterator[None]:
    """Keep a second run from writing to the same folders, named by their settings.

    Collective: all ranks learn whether rank 0 has the locks.
    """
    with ExitStack() as locks:
        problem = None
        if topology.rank == 0:
            try:
                for folder, settings in _distinct(folders).items():
                    locks.enter_context(locked(folder, setting=" and ".join(settings)))
            except StorageError as error:
                problem = str(error)
        refusal = topology.broadcast("locks of folders", problem)
        if refusal is not None:
            raise StorageError(refusal)
        yield


def _distinct(folders: Mapping[str, Path | None]) -> dict[Path, list[str]]:
    """Create the folders and return each once, whatever paths lead to it, with the settings that name it."""
    found: dict[Path, list[str]] = {}
    for setting, folder in folders.items():
        if folder is not None:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
            same = next((known for known in found if _is_same(known, folder)), folder)
            found.setdefault(same, []).append(setting)
    return found


def _is_same(a: Path, b: Path) -> bool:
    with suppress(OSError):  # one of them could not be created
        return a.samefile(b)
    return a == b


def communicator(topology: Topology) -> Communicator:
    """Return a communicator for checkpoints, with keys of its own. All ranks must create theirs in the same order."""
    if topology.store is None:
        return Alone()
    prefix = topology.own_prefix("checkpoint")
    return StoreCommunicator(topology.store, topology.rank, topology.layout.world_size, prefix=prefix)
