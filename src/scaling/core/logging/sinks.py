"""Where metrics go: a file of JSON lines, TensorBoard, experiment trackers, the terminal."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.core.errors import ConfigError, StorageError
from scaling.core.logging.config import LoggerConfig
from scaling.core.logging.console import ConsoleSink
from scaling.core.logging.metrics import MetricSink
from scaling.core.logging.metrics_files import METRICS_FILE, previous_file, repeated_file
from scaling.core.logging.packages import is_chosen, missing_package
from scaling.core.logging.trackers import open_trackio, open_wandb
from scaling.core.storage.writing import append_whole


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
    `run_config` is the configuration that a tracker stores.
    """
    sinks: list[MetricSink] = []
    with contextlib.ExitStack() as opened:

        def add(sink: MetricSink) -> None:
            opened.callback(sink.close)
            sinks.append(sink)

        if config.log_dir is not None and rank == 0:
            add(JsonLinesSink(config.log_dir / METRICS_FILE, resumed_step=resumed_step))
        to_tensorboard = config.use_tensorboard and is_chosen(config.tensorboard_ranks, rank, positions)
        if config.log_dir is not None and to_tensorboard:
            add(TensorBoardSink(config.log_dir / "tensorboard", rank=rank, resumed_step=resumed_step))
        for is_wanted, open_tracker in (
            (config.use_wandb and is_chosen(config.wandb_ranks, rank, positions), open_wandb),
            (config.use_trackio and rank == 0, open_trackio),
        ):
            if is_wanted:
                add(open_tracker(config, rank=rank, resumed_step=resumed_step, run_config=run_config or {}))
        if prints_metrics(config, rank):
            add(ConsoleSink(total_steps=total_steps, first_step=resumed_step, may_draw=rank == 0))
        opened.pop_all()
    return sinks


class JsonLinesSink:
    """Sink of one JSON object per line, at full precision; it is continued when a run resumes.

    Lines that an earlier start wrote after `resumed_step` are moved to `metrics.repeated.jsonl`, since these steps are
    repeated, and an unfinished last line is cut off. When a run starts anew, the existing file is kept as
    `metrics.previous.jsonl`, later ones as `metrics.previous.2.jsonl` and so on. Numbers that are not finite appear as
    NaN and Infinity, as Python's json module reads them.
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
        append_whole(self._file, json.dumps({"step": step, **metrics}).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Sink of scalars for TensorBoard, in a separate folder for each rank other than 0."""

    def __init__(self, folder: Path, *, rank: int, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(missing_package("use_tensorboard")) from error
        path = folder if rank == 0 else folder / f"rank_{rank}"
        purge = resumed_step + 1 if resumed_step > 0 else None
        self._writer = SummaryWriter(str(path), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write the buffered metrics."""
        self._writer.close()


def prints_metrics(config: LoggerConfig, rank: int) -> bool:
    """Return whether a rank shows metrics."""
    return is_chosen(config.metrics_ranks, rank)


def _free_name(path: Path) -> Path:
    """Return the first free name for the metrics of an earlier start."""
    return next(name for number in itertools.count(1) if not os.path.lexists(name := previous_file(path, number)))


def _cut_after(path: Path, last_step: int) -> None:
    """Cut `path` after its last whole line of a step up to `last_step`; move later whole lines to `repeated_file`."""
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
