"""A language model small enough to be trained in every layout within a second or two, its data, and what a run left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scaling.core import ExitStatus, LaunchContext, MemoryMapDatasetBuilder
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.train import train
from tests.distributed import run_distributed

Settings = Mapping[str, Any]
"""Dotted names with values."""

VOCABULARY = 67
"""Odd: the parts of two tensor-parallel ranks differ."""
SEQUENCE = 16
BATCH = 8

SMALL: Settings = {
    "transformer_architecture.vocab_size": VOCABULARY,
    "transformer_architecture.hidden_size": 32,
    "transformer_architecture.num_layers": 3,
    "transformer_architecture.num_attention_heads": 4,
    "transformer_architecture.attention_num_kv_heads": 2,
    "transformer_architecture.mlp_type": "swiglu",
    "transformer_architecture.mlp_factor": 2,
    "transformer_architecture.norm_type": "rms",
    "transformer_architecture.sequence_length": SEQUENCE,
    "topology.device": "cpu",
    "topology.global_batch_size": BATCH,
    "topology.micro_batch_size": 2,
    "topology.process_group_timeout_seconds": 60,
    "learning_rate_scheduler.learning_rate": 0.02,
    "learning_rate_scheduler.learning_rate_warmup_steps": 2,
    "trainer.train_iterations": 10,
    "trainer.gc_interval": 0,
}

LAYOUTS: tuple[tuple[int, int, int], ...] = (
    *((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)),
    *((2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)),
)
"""Data, pipe, model."""


def layout(data: int, pipe: int, model: int) -> dict[str, Any]:
    """Return the settings of a layout."""
    return {
        "topology.data_parallel_size": data,
        "topology.pipe_parallel_size": pipe,
        "topology.model_parallel_size": model,
    }


def build_corpus(prefix: Path, *, documents: int = 60, seed: int = 0, largest: int = VOCABULARY - 1) -> Path:
    """Write documents that count up in steps of their own, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    with MemoryMapDatasetBuilder(prefix, np.int32) as builder:
        for _ in range(documents):
            size, first, step = (int(generator.integers(low, high)) for low, high in ((3, 50), (1, 60), (1, 5)))
            builder.add([*(1 + (first + step * np.arange(size)) % largest), 0])
    return prefix


def nested(settings: Settings) -> dict[str, Any]:
    """Return dotted names as the sections of a file."""
    sections: dict[str, Any] = {}
    for path, value in settings.items():
        *outer, name = path.split(".")
        section = sections
        for part in outer:
            section = section.setdefault(part, {})
        section[name] = value
    return sections


def settings_of(corpus: Path, run: Path, *changes: Settings) -> dict[str, Any]:
    """Return the settings of a run that logs to `run`; later changes win, and None as a value removes a setting."""
    merged: dict[str, Any] = {**SMALL, "data.data_prefixes": [str(corpus)], "logger.log_dir": str(run)}
    for change in changes:
        merged |= change
    return {path: value for path, value in merged.items() if value is not None}


def write_config(path: Path, settings: Settings) -> Path:
    """Write a configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(nested(settings)))
    return path


def train_as_rank(rank: int, world_size: int, sections: dict[str, Any]) -> ExitStatus:
    """Train as one rank of a world of test workers."""
    return train(TransformerConfig.from_dict(sections), LaunchContext.from_environment())


def train_small(corpus: Path, run: Path, *changes: Settings, faults: str | None = None) -> list[dict[str, Any]]:
    """Train in a world of workers; return the lines of metrics.jsonl."""
    assert statuses(corpus, run, *changes, faults=faults) == {ExitStatus.DONE}
    return metrics(run)


def statuses(corpus: Path, run: Path, *changes: Settings, faults: str | None = None) -> set[ExitStatus]:
    """Train in a world of workers; return what the ranks end with."""
    settings = settings_of(corpus, run, *changes)
    sizes = (settings.get(f"topology.{axis}_parallel_size", 1) for axis in ("data", "pipe", "model"))
    environment = {} if faults is None else {"SCALING_FAULT": faults}
    return set(run_distributed(train_as_rank, prod(sizes), nested(settings), environment=environment))


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return what a run has logged, line by line."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def values(lines: Sequence[Mapping[str, Any]], name: str = "training/loss") -> list[float]:
    """Return one metric of the steps that have it."""
    return [line[name] for line in lines if name in line]


def state(run: Path) -> dict[str, Any]:
    """Return run_state.json."""
    found: dict[str, Any] = json.loads((run / "run_state.json").read_text())
    return found


def command_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a command that has to find this repository's packages."""
    path = os.pathsep.join([str(Path("src").resolve()), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    # torch's store asks who 127.0.0.1 is; where no name server answers, that takes 5 seconds unless told otherwise.
    return {**os.environ, "PYTHONPATH": path, "RES_OPTIONS": "timeout:1 attempts:1", **variables}


def run_module(
    module: str, *arguments: object, timeout: float = 240, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `python3 -m module arguments` to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=command_environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
