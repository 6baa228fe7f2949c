"""Tasks of lm-eval on the command line: run with a checkpoint, and shown as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from scaling.cli.checkpoint import PIPE_WIDTH
from scaling.core import Topology
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.evaluation.tasks import TaskScore, run_tasks, scores_of
from scaling.transformer.inference.module import TransformerInferenceModule


def evaluate_tasks(
    checkpoint: Path,
    tasks: Sequence[str],
    *,
    topology: Topology | None = None,
    device: str = "cpu",
    precision: str | None = None,
    include_path: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    progress: ProgressCallback = silent,
) -> list[TaskScore]:
    """Return the numbers of tasks. Collective: all ranks, which must not be replicas along the data axis."""
    model = TransformerInferenceModule.from_checkpoint(
        checkpoint, device=device, precision=precision, topology=topology
    )
    return scores_of(
        run_tasks(model, tasks, include_path=include_path, limit=limit, shots=shots, progress=progress)
    )


def rows_of(scores: Sequence[TaskScore]) -> list[dict[str, Any]]:
    """Return the numbers for JSON."""
    return [asdict(score) for score in scores]


def show_scores(scores: Sequence[TaskScore]) -> None:
    """Print the numbers as a table, each task's name once."""
    table = Table(
        Column("task", overflow="fold"),
        Column("metric", overflow="fold"),
        Column("value", justify="right"),
        Column("error", justify="right"),
        Column("shots", justify="right"),
        Column("samples", justify="right"),
    )
    before = None
    for score in scores:
        name = "" if score.task == before else score.task
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
        numbers = ("" if number is None else f"{number:,}" for number in (score.shots, score.samples))
        error = "" if score.error is None else f"± {score.error:.4f}"
        table.add_row(escape(name), escape(metric + arrow), f"{score.value:.4f}", error, *numbers)
        before = score.task
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)
