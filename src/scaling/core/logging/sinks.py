"""Where metrics go besides the terminal: a file of JSON lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.core.errors import ConfigError, Problem, StorageError
from scaling.core.logging.config import LoggerConfig, TensorboardRanksConfig
from scaling.core.logging.console import ConsoleSink
from scaling.core.logging.metrics import MetricSink
from scaling.core.logging.metrics_files import METRICS_FILE, previous_file, repeated_file


def open_sinks(
    config: LoggerConfig,
    *,
    rank: int,
    positions: Mapping[str, int],
    resumed_step: int,
    total_steps: int,
    run_config: Mapping[str, Any] | None = None,
) -> list[MetricSink]:
    """Return the sinks of this rank. `positions` are its indices on the pipe, data and model axes.

    `resumed_step` is the last step whose metrics are kept from an earlier start of the run, 0 for a new run.
    `run_config` is what Weights & Biases stores as the configuration.
    """
    sinks: list[MetricSink] = []
    with contextlib.ExitStack() as opened:

        def add(sink: MetricSink) -> None:
            opened.callback(sink.close)
            sinks.append(sink)

        if config.log_dir is not None and rank == 0:
            add(JsonLinesSink(config.log_dir / METRICS_FILE, resumed_step=resumed_step))
        to_tensorboard = config.use_tensorboard and _is_chosen(config.tensorboard_ranks, rank, positions)
        if config.log_dir is not None and to_tensorboard:
            add(TensorBoardSink(config.log_dir / "tensorboard", rank=rank, resumed_step=resumed_step))
        if config.use_wandb and _is_chosen(config.wandb_ranks, rank, positions):
            add(WandbSink(config, rank=rank, resumed_step=resumed_step, run_config=run_config or {}))
        if _is_chosen(config.metrics_ranks, rank, positions):
            add(ConsoleSink(total_steps=total_steps, first_step=resumed_step, may_draw=rank == 0))
        opened.pop_all()
    return sinks


class JsonLinesSink:
    """One JSON object a line, full precision, appended when a run goes on.

    What an earlier start wrote after `resumed_step` is moved to `metrics.repeated.jsonl`, for these steps come again,
    and a last line that was not finished is cut off. The file of a run that starts anew is kept as
    `metrics.previous.jsonl`, the next ones as `metrics.previous.2.jsonl` and so on. Numbers that are not finite appear
    as NaN and Infinity, as Python's json module reads them.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resumed_step > 0:
                _cut_after(path, resumed_step)
            elif path.exists() and path.stat().st_size > 0:
                path.replace(_free_name(path))
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"{path} cannot be written ({error}); set logger.log_dir to another folder") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line, whole or not at all."""
        line = json.dumps({"step": step, **metrics}).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(f"{self._file.name} is out of space")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Scalars for TensorBoard, in a folder of their own for each rank other than 0."""

    def __init__(self, folder: Path, *, rank: int, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("use_tensorboard", "tensorboard") from error
        path = folder if rank == 0 else folder / f"rank_{rank}"
        purge = resumed_step + 1 if resumed_step > 0 else None
        self._writer = SummaryWriter(str(path), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class WandbSink:
    """Metrics for Weights & Biases. A run that goes on is the same run there; the key comes from the environment."""

    def __init__(self, config: LoggerConfig, *, rank: int, resumed_step: int, run_config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("use_wandb", "wandb") from error
        folder = config.log_dir or Path(tempfile.mkdtemp(prefix="scaling_wandb_"))
        folder.mkdir(parents=True, exist_ok=True)
        identity = folder / f"wandb_run_{rank}"
        known = identity.read_text(encoding="utf-8").strip() if resumed_step > 0 and identity.exists() else None
        try:
            self._run = wandb.init(
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
        identity.write_text(self._run.id, encoding="utf-8")
        # A metric of our own as the axis: the built-in step only goes up, and drops what is trained again on resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def _is_chosen(ranks: Sequence[int] | TensorboardRanksConfig | None, rank: int, positions: Mapping[str, int]) -> bool:
    match ranks:
        case None:
            return rank == 0
        case TensorboardRanksConfig():
            wanted = {
                "pipe": ranks.pipe_parallel_rank,
                "data": ranks.data_parallel_rank,
                "model": ranks.model_parallel_rank,
            }
            return all(index is None or positions[axis] == index for axis, index in wanted.items())
        case _:
            return rank in ranks


def _free_name(path: Path) -> Path:
    """Return the first name for the file of an earlier attempt that no earlier one has."""
    return next(name for number in itertools.count(1) if not os.path.lexists(name := previous_file(path, number)))


def _cut_after(path: Path, last_step: int) -> None:
    """Cut `path` after its last whole line of a step up to `last_step`; keep the whole lines behind it beside it."""
    if not path.exists():
        return
    keep = position = 0
    with path.open("rb") as file:
        for line in file:
            position += len(line)
            if line.endswith(b"\n") and _step_of(line) <= last_step:
                keep = position
        if keep < position:
            file.seek(keep)
            with repeated_file(path).open("ab") as repeated:
                for line in file:
                    if line.endswith(b"\n"):
                        repeated.write(line)
            os.truncate(path, keep)


def _step_of(line: bytes) -> float:
    """Return the step of a line, infinity where it cannot be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")


def _missing(field: str, package: str) -> ConfigError:
    return ConfigError(
        Problem(
            f"logger.{field}",
            f"is true, but the package {package} is not installed; `pip install {package}` or set it to false",
        )
    )
