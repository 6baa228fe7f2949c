"""Experiment trackers whose Python interface is that of Weights & Biases: Weights & Biases itself, and trackio."""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, final

from scaling.core.errors import ConfigError, Problem
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.packages import missing_package


class TrackedRun(Protocol):
    """The methods that are used of a run of either package."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Send the metrics of a step."""

    def finish(self) -> None:
        """Wait until everything is written."""


@final
class TrackerSink:
    """Sink of metrics for a tracker. A resumed run continues the same run there, named in a file in `logger.log_dir`.

    `counts_up` says that the tracker's own step count only rises, which would drop steps that are repeated after a
    resume: the step is then logged as a metric, which `run` uses as its axis.
    """

    def __init__(self, run: TrackedRun, *, counts_up: bool) -> None:
        self._run = run
        self._counts_up = counts_up

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        with _costing_metrics_only():
            if self._counts_up:
                self._run.log({"step": step, **metrics})
            else:
                self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is sent."""
        with _costing_metrics_only(), _saying_on_stderr():
            self._run.finish()


def open_wandb(config: LoggerConfig, *, rank: int, resumed_step: int, run_config: Mapping[str, Any]) -> TrackerSink:
    """Return the sink of Weights & Biases. The key comes from the environment; WANDB_MODE=offline needs none."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(missing_package("use_wandb")) from error
    folder = config.log_dir or Path(tempfile.mkdtemp(prefix="scaling_wandb_"))
    folder.mkdir(parents=True, exist_ok=True)
    identity = folder / f"wandb_run_{rank}"
    known = _known(identity, resumed_step)
    try:
        run = wandb.init(
            entity=config.wandb_team,
            project=config.wandb_project,
            group=config.wandb_group,
            name=f"{socket.gethostname()}-{rank}",
            id=known,
            resume="allow" if known else None,
            dir=str(folder),
            config=dict(run_config),
            settings=wandb.Settings(base_url=config.wandb_host),
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            Problem(
                "logger.use_wandb",
                f"is true, but Weights & Biases cannot be used ({error}); export WANDB_API_KEY or "
                "WANDB_MODE=offline, or set it to false",
            )
        ) from error
    identity.write_text(run.id, encoding="utf-8")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return TrackerSink(run, counts_up=True)


def open_trackio(config: LoggerConfig, *, rank: int, resumed_step: int, run_config: Mapping[str, Any]) -> TrackerSink:
    """Return the sink of trackio, which keeps runs in a database on this machine and knows them by their names."""
    try:
        import trackio
    except ImportError as error:
        raise ConfigError(missing_package("use_trackio")) from error
    identity = None if config.log_dir is None else config.log_dir / f"trackio_run_{rank}"
    known = None if identity is None else _known(identity, resumed_step)
    name = known or f"{socket.gethostname()}-{rank}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6}"
    try:
        with _saying_on_stderr():
            run = trackio.init(
                project=config.trackio_project,
                name=name,
                resume="allow" if known else "never",
                config=dict(run_config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
    except (OSError, ValueError) as error:
        raise ConfigError(
            Problem("logger.use_trackio", f"is true, but trackio cannot be used ({error}); set it to false")
        ) from error
    if identity is not None:
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(run.name, encoding="utf-8")
    return TrackerSink(run, counts_up=False)


def _known(identity: Path, resumed_step: int) -> str | None:
    """Return the tracker's identifier of the run that is resumed; None for a new run."""
    if resumed_step == 0 or not identity.exists():
        return None
    return identity.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def _costing_metrics_only() -> Iterator[None]:
    """Turn any error of a package into an OSError, which a `MetricWriter` reports: a tracker must not end a run."""
    try:
        yield
    except Exception as error:  # from the connection, the database and the service of either package
        raise OSError(f"{type(error).__name__}: {error}") from error


def _saying_on_stderr() -> contextlib.AbstractContextManager[Any]:
    """Keep what a package prints out of the program's own output."""
    return contextlib.redirect_stdout(sys.stderr)
