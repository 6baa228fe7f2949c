"""`scaling evaluate`: loss, perplexity and bits per byte of data, and tasks of lm-eval."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from scaling.cli.checkpoint import PIPE_WIDTH, Precision
from scaling.cli.json_text import json_text
from scaling.cli.model_options import CheckpointPath
from scaling.cli.places import checkpoints_at
from scaling.cli.ranks import DataParallelSize, DeviceName, Here, ModelParallelSize, PipeParallelSize, Ranks
from scaling.core import ConfigError, Topology, TopologyConfig
from scaling.transformer.data.progress import ConsoleProgress, ProgressCallback, silent
from scaling.transformer.data.tokenizer import TOKENIZER_FILE
from scaling.transformer.evaluation.corpus import CorpusLoss, evaluate_corpora
from scaling.transformer.inference.device import require_device
from scaling.transformer.inference.module import TransformerInferenceModule

_TASKS: Final = "scaling.transformer.evaluation.tasks"
"""Imported only when tasks are evaluated."""


def evaluate(
    checkpoint: CheckpointPath,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="PREFIX ...", help="Token data sets (paths without .bin), or JSON files of records."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE ...", help="Tasks of lm-eval by name or pattern, or YAML files of your own."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with further tasks.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="At most this many sequences of each data set, spread evenly over it; of each task, the first ones.",
            show_default="all of them",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="TYPE", help="float64, float32, bfloat16 or float16.", show_default="as the weights were trained"
        ),
    ] = None,
    micro_batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences that a process computes at once.")
    ] = 4,
    model_parallel_size: ModelParallelSize = 1,
    pipe_parallel_size: PipeParallelSize = 1,
    data_parallel_size: DataParallelSize = 1,
    device: DeviceName = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure a trained model: loss, perplexity and bits per byte of data, or scores in tasks of lm-eval.

    The data are read as in the evaluations of the model's training.
    CHECKPOINT may be that of a fine-tuning; its base is found automatically.
    """
    _require_something(data, tasks, include_path, copies=data_parallel_size)
    ranks = Ranks(
        device=device,
        model_parallel_size=model_parallel_size,
        pipe_parallel_size=pipe_parallel_size,
        data_parallel_size=data_parallel_size,
    )
    layout = TopologyConfig.from_dict(
        {
            "model_parallel_size": model_parallel_size,
            "pipe_parallel_size": pipe_parallel_size,
            "data_parallel_size": data_parallel_size,
            "micro_batch_size": micro_batch_size,
            "gradient_accumulation_steps": 1,
        },
        quiet=True,
    )

    def work(here: Here) -> None:
        found = checkpoints_at(checkpoint) if here.speaks else checkpoint
        wide = None if precision is None else precision.value
        losses, scores = None, None
        with _progress(here) as progress:
            if data:
                topology = here.topology or _alone(here.device)
                rows = evaluate_corpora(
                    found, data, layout, topology, precision=wide, samples=samples, progress=progress
                )
                losses = list(rows)
            if tasks:
                model = TransformerInferenceModule.from_checkpoint(
                    found, device=here.device, precision=wide, topology=here.topology
                )
                scores = _scores(model, tasks, include_path, limit=samples, progress=progress)
        if here.speaks:
            _show(losses, scores, as_json=as_json)

    ranks.run(work)


def _require_something(
    data: Sequence[Path] | None, tasks: Sequence[str] | None, include_path: Path | None, *, copies: int
) -> None:
    """Refuse options that leave nothing to evaluate, or contradict each other."""
    if not data and not tasks:
        raise ConfigError(
            "there is nothing to evaluate; give --data PREFIX, a token data set of `scaling data`, or --tasks NAME, a "
            "task of lm-eval"
        )
    if include_path is not None and not tasks:
        raise ConfigError(
            f"--include-path {include_path} is a folder of tasks, and none is to be run; name it: --tasks"
        )
    if tasks and copies > 1:
        raise ConfigError(
            f"--data-parallel-size ({copies}) makes copies of the model, and tasks are answered by one; evaluate "
            "--data with it, and --tasks without"
        )


def _alone(device: str) -> Topology:
    require_device(device)
    return Topology.single(device)


def _scores(
    model: TransformerInferenceModule,
    tasks: Sequence[str],
    include_path: Path | None,
    *,
    limit: int | None,
    progress: ProgressCallback,
) -> list[dict[str, Any]]:
    """Run tasks, and return a row for each score."""
    lm_eval: Any = importlib.import_module(_TASKS)
    results = lm_eval.run_tasks(model, tasks, include_path=include_path, limit=limit, progress=progress)
    return [asdict(score) for score in lm_eval.scores_of(results)]


@contextlib.contextmanager
def _progress(here: Here) -> Iterator[ProgressCallback]:
    """Show the progress, on a terminal."""
    console = Console(stderr=True)
    if not (here.speaks and console.is_terminal):
        yield silent
        return
    with ConsoleProgress(console) as progress:
        yield progress


def _show(losses: Sequence[CorpusLoss] | None, scores: Sequence[Mapping[str, Any]] | None, *, as_json: bool) -> None:
    if losses and any(loss.bytes is None for loss in losses):
        typer.echo(
            f"note: there is no {TOKENIZER_FILE} beside the step folders, so that nothing tells how many bytes a token "
            "stands for",
            err=True,
        )
    if as_json:
        found = {"data": None if losses is None else [*map(_row, losses)], "tasks": scores}
        typer.echo(json_text({name: rows for name, rows in found.items() if rows is not None}, indent=2))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=PIPE_WIDTH)
    if losses:
        console.print(losses[0].checkpoint, highlight=False, soft_wrap=True, markup=False)
        numbers = ("loss", "perplexity", "bits per byte", "tokens", "bytes", "samples")
        console.print(_table("data", numbers, [[loss.data, *_cells(loss)] for loss in losses]))
    if scores is not None:
        named = ("task", "metric", "value", "error", "filter", "shots", "samples")
        rows = [[_cell(score[name]) for name in named] for score in scores]
        console.print(_table("task", ("metric", "value", "error", "filter", "shots", "documents"), rows))


def _table(first: str, numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(Column(first, overflow="fold"), *(Column(name, justify="right") for name in numbers))
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _row(loss: CorpusLoss) -> dict[str, Any]:
    derived = {"loss": loss.loss, "perplexity": loss.perplexity, "bits_per_byte": loss.bits_per_byte}
    return {"data": loss.data, **derived, **{name: value for name, value in asdict(loss).items() if name != "data"}}


def _cells(loss: CorpusLoss) -> Iterator[str]:
    yield from map(_cell, (loss.loss, loss.perplexity, loss.bits_per_byte))
    yield f"{loss.tokens:,}"
    yield "-" if loss.bytes is None else f"{loss.bytes:,.12g}"
    yield f"{loss.samples:,}"
