"""From the command line of an application to its processes, and in each process to its training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from scaling.core.config.base import BaseConfig
from scaling.core.config.config_file import read_config
from scaling.core.errors import ConfigError, ExitStatus
from scaling.core.logging.config import LoggerConfig
from scaling.core.optimizer.config import AdamWConfig, OptimizerConfig
from scaling.core.profiler.config import ProfilerConfig
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.main import runner_main
from scaling.core.runner.plan import HostNeeds
from scaling.core.runner.process import run_process
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.launch import LaunchContext, is_started_by_runner
from scaling.core.trainer.config import TrainerConfig


class RunConfig(BaseConfig):
    """The sections every training has; an application adds its own in a subclass."""

    runner: RunnerConfig = RunnerConfig()
    """Where the processes of a run are started."""
    logger: LoggerConfig = LoggerConfig()
    """Messages, metrics and their destinations."""
    topology: TopologyConfig = TopologyConfig()
    """Processes on each axis, and samples in each step."""
    optimizer: OptimizerConfig = AdamWConfig()
    """The optimizer."""
    trainer: TrainerConfig = TrainerConfig()
    """Length of the training, evaluation, checkpoints and data loading."""
    profiler: ProfilerConfig = ProfilerConfig()
    """Timeline of what each rank did in a few steps, and of what the schedule predicts."""


_DRY_RUN = "--dry-run"
_HELP = """
  CONFIG       the configuration, YAML or JSON
  KEY=VALUE    a change of a setting, such as trainer.seed=2
"""
_HELP_DRY_RUN = f"  {_DRY_RUN}    print what would be started, and start nothing\n"

Config = TypeVar("Config", bound=RunConfig)


def run_in_processes(config_class: type[RunConfig], module: str) -> NoReturn:
    """Start `module` in the processes that the configuration on the command line asks for; exit with their status.

    The command line is CONFIG [KEY=VALUE ...] [--dry-run]; `--dry-run` prints what would be started. `module` must end
    in a call of `run_training_process` with the same class.
    """

    def start() -> int:
        if is_started_by_runner():
            raise ConfigError(
                f"{module} would start itself without end: run_in_processes names it, and it calls run_in_processes; "
                "name the module that ends in run_training_process"
            )
        path, overrides = command_line(dry_run=True)
        dry_run = _DRY_RUN in overrides
        overrides = [override for override in overrides if override != _DRY_RUN]
        text = read_config(path)
        config = config_class.from_str(text, overrides, source=path)
        if LaunchContext.from_environment().rank == 0:
            for note in config.all_notes():
                sys.stderr.write(f"note: {note}\n")
        return runner_main(
            config.runner,
            module_or_script=module,
            config_path=path,
            config_text=text,
            overrides=overrides,
            processes=config.topology.world_size,
            log_dir=config.logger.log_dir,
            needs=HostNeeds(folders=needed_folders(config.logger, config.trainer), device=config.topology.device.value),
            dry_run=dry_run,
        )

    run_process(start)


def needed_folders(logger: LoggerConfig, trainer: TrainerConfig) -> tuple[tuple[str, str], ...]:
    """Return the setting and path of each folder that must be the same folder on all machines of a run."""
    folders = {"logger.log_dir": logger.log_dir, "trainer.save_dir": trainer.save_dir}
    return tuple((setting, str(path)) for setting, path in folders.items() if path is not None)


def run_training_process(config_class: type[Config], train: Callable[[Config, LaunchContext], ExitStatus]) -> NoReturn:
    """Call `train` with the configuration of the command line, as one process of the run; exit with its status."""

    def work() -> int:
        path, overrides = command_line()
        launch = LaunchContext.from_environment()
        text = read_config(path, copy=launch.config_copy)
        return train(config_class.from_str(text, overrides, source=path, quiet=launch.rank != 0), launch)

    run_process(work)


def command_line(*, dry_run: bool = False) -> tuple[str, list[str]]:
    """Return CONFIG and the overrides that this process was given; with --help print the usage, and exit with 0.

    `dry_run`: `--dry-run` is an option, which the usage names.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)  # None where Python was given a file
    program = sys.argv[0] if module is None else f"python3 -m {module.name}"
    usage = f"{program} CONFIG [KEY=VALUE ...]"
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        option, meaning = (f" [{_DRY_RUN}]", _HELP_DRY_RUN) if dry_run else ("", "")
        sys.stdout.write(f"usage: {usage}{option}\n{_HELP}{meaning}")
        raise SystemExit(ExitStatus.DONE)
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise ConfigError(f"name a configuration: {usage}")
    return sys.argv[1], sys.argv[2:]
