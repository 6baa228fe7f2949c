"""One training run from assembled parts to exit status: metrics, run files, checkpoints and the trainer around them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Alone, Communicator, StoreCommunicator
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.lock import locked
from scaling.core.data.types import BaseDataset
from scaling.core.errors import ExitStatus, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.metrics import MetricWriter
from scaling.core.logging.provenance import write_run_files
from scaling.core.logging.run_state import RunStateRecorder
from scaling.core.logging.sinks import open_sinks
from scaling.core.optimizer.optimizer import Optimizer, StepReport
from scaling.core.pipeline.loss import LossFunction
from scaling.core.pipeline.module import ParallelModule
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.data import TrainingData
from scaling.core.trainer.hooks import TrainerHook
from scaling.core.trainer.profiling import ProfilingHook
from scaling.core.trainer.state import RunIdentity, due
from scaling.core.trainer.trainer import Trainer


def run_training(
    trainer_config: TrainerConfig,
    logger_config: LoggerConfig,
    topology_config: TopologyConfig,
    *,
    topology: Topology,
    module: ParallelModule,
    optimizer: Optimizer,
    loss_function: LossFunction,
    training: BaseDataset[Any],
    identity: RunIdentity,
    validation: BaseDataset[Any] | None = None,
    tokens_per_sample: int | None = None,
    flops_per_sample: float | None = None,
    profiler_config: ProfilerConfig | None = None,
    hooks: Sequence[TrainerHook] = (),
    once_resumed: Callable[[], None] | None = None,
) -> ExitStatus:
    """Train to the end, or until asked to leave, and return what the process should end with. Collective: all ranks.

    Writes metrics, the resolved configuration, versions and the state of the run below `logger.log_dir`, checkpoints
    below `trainer.save_dir`. Errors pass through, recorded in run_state.json. `once_resumed` is called before the first
    step, when it is certain that the checkpoints in `save_dir` are this run's own.
    """
    folders = {"trainer.save_dir": trainer_config.save_dir, "logger.log_dir": logger_config.log_dir}
    with (  # the locks first: a run that is refused must not write over the log of the one that it meets
        alone_in(folders, topology),
        RunStateRecorder(logger_config.log_dir, rank=topology.rank) as recorder,
    ):
        sizes = {axis.value: topology.size(axis) for axis in Axis}
        write_run_files(
            logger_config.log_dir,
            identity.config,
            layout=sizes,
            data_fingerprint=identity.fingerprints.get("data"),
            rank=topology.rank,
        )

        def open_metrics(resumed_step: int) -> MetricWriter:
            if once_resumed is not None:
                once_resumed()
            sinks = open_sinks(
                logger_config,
                rank=topology.rank,
                positions={axis.value: topology.index(axis) for axis in Axis},
                resumed_step=resumed_step,
                total_steps=trainer_config.train_iterations or 0,
                run_config=identity.config.as_dict(),
            )
            return MetricWriter(sinks)

        _require_writable(trainer_config.save_dir, topology)
        checkpointer = Checkpointer(
            trainer_config.save_dir,
            communicator=communicator(topology),
            retention=Retention(
                keep_last=trainer_config.keep_last_checkpoints,
                keep_every=trainer_config.keep_every_steps,
                keep_optimizer_last=1 if trainer_config.delete_past_optimizer_states else None,
            ),
            asynchronous=trainer_config.save_async,
            information={"layout": sizes},
        )
        data = TrainingData(
            training,
            validation,
            config=trainer_config,
            batch=topology_config,
            topology=topology,
            reads=module.first or module.last,
        )
        trainer = Trainer(
            trainer_config,
            topology,
            module=module,
            optimizer=optimizer,
            loss_function=loss_function,
            data=data,
            checkpointer=checkpointer,
            open_metrics=open_metrics,
            identity=identity,
            tokens_per_sample=tokens_per_sample,
            flops_per_sample=flops_per_sample,
            hooks=(*hooks, *_profiling(profiler_config, logger_config, topology), _Recording(recorder)),
        )
        trainer.fit()
        if trainer.preempted is None:
            recorder.finished(trainer.state.step)
            return ExitStatus.DONE
        saved = "saved" if trainer_config.save_dir is not None else "nothing saved: trainer.save_dir is null"
        recorder.preempted(trainer.state.step, f"{trainer.preempted}, {saved}")
        return ExitStatus.PREEMPTED


def _profiling(config: ProfilerConfig | None, logger_config: LoggerConfig, topology: Topology) -> list[TrainerHook]:
    if config is None or config.profile_steps == 0:
        return []
    output = config.profiler_output or (logger_config.log_dir / "profile.json" if logger_config.log_dir else None)
    return [] if output is None else [ProfilingHook(config, topology, output)]


def _require_writable(save_dir: Path | None, topology: Topology) -> None:
    """Refuse a folder that no checkpoint could be written to now, not at the first save. Collective: all ranks."""
    if save_dir is None:
        return
    problem = None
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir):
            pass
    except OSError as error:
        problem = str(error)
    problems = [said for said in topology.exchange("save_dir", problem) if said is not None]
    if problems:
        raise StorageError(f"{save_dir} cannot be written ({problems[0]}); set trainer.save_dir to another folder")


@contextmanager
def alone_in(folders: Mapping[str, Path | None], topology: Topology) -> Iterator[None]:
    """Keep a second run from writing to the same folders, named by their settings.

    Collective: all ranks learn whether rank 0 has the locks.
    """
    with ExitStack() as held:
        problem = None
        if topology.rank == 0:
            try:
                for folder, settings in _distinct(folders).items():
                    held.enter_context(locked(folder, setting=" and ".join(settings)))
            except StorageError as error:
                problem = str(error)
        told = topology.exchange("locks of folders", problem)[0]
        if told is not None:
            raise StorageError(told)
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
    """Return how the ranks of a topology agree on checkpoints."""
    if topology.store is None:
        return Alone()
    return StoreCommunicator(topology.store, topology.rank, topology.layout.world_size)


@final
class _Recording:
    """Tells run_state.json how far the run is, for people and for a failure to name its step."""

    def __init__(self, recorder: RunStateRecorder) -> None:
        self._recorder = recorder

    def before_step(self, trainer: Trainer) -> None:
        pass

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        if due(trainer.state.step, trainer.config.log_interval):
            self._recorder.running(trainer.state.step)

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        pass
