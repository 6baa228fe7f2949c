"""`scaling evaluate`: loss, perplexity and bits per byte of data, and tasks of lm-eval."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from scaling.cli.checkpoint import PIPE_WIDTH, Precision
from scaling.cli.places import checkpoints_at
from scaling.cli.ranks import DataParallelSize, DeviceName, Here, ModelParallelSize, PipeParallelSize, Ranks
from scaling.core import ConfigError, Topology, TopologyConfig
from scaling.transformer.data.progress import ConsoleProgress, ProgressCallback, silent
from scaling.transformer.data.tokenizer import TOKENIZER_FILE
from scaling.transformer.evaluation.corpus import CorpusLoss, evaluate_corpora
from scaling.transformer.inference.device import require_device


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A folder of checkpoints, one step's folder, or a run's folder."),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="PREFIX ...", help="Token data sets (paths without .bin), or JSON files of records."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="At most so many sequences of each, spread over it.", show_default="all of them"
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
    """Say what a trained model makes of data: loss, perplexity, and bits per byte of their text.

    The data are read as the evaluation of its own training reads them, all of them. CHECKPOINT may be that of a
    fine-tuning, whose base is found by itself.
    """
    if not data:
        raise ConfigError("there is nothing to evaluate; give --data PREFIX, a token data set of `scaling data`")
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
        topology = here.topology
        if topology is None:
            require_device(here.device)
            topology = Topology.single(here.device)
        found = checkpoints_at(checkpoint) if here.speaks else checkpoint
        with _progress(here) as progress:
            losses = list(
                evaluate_corpora(
                    found,
                    data,
                    layout,
                    topology,
                    precision=None if precision is None else precision.value,
                    samples=samples,
                    progress=progress,
                )
            )
        if here.speaks:
            _show(losses, as_json=as_json)

    ranks.run(work)


@contextlib.contextmanager
def _progress(here: Here) -> Iterator[ProgressCallback]:
    """Show how far it is, on a terminal."""
    console = Console(stderr=True)
    if not (here.speaks and console.is_terminal):
        yield silent
        return
    with ConsoleProgress(console) as progress:
        yield progress


def _show(losses: Sequence[CorpusLoss], *, as_json: bool) -> None:
    if any(loss.bytes is None for loss in losses):
        typer.echo(
            f"note: there is no {TOKENIZER_FILE} beside the step folders, so that nothing tells how many bytes a token "
            "stands for",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps({"data": [_row(loss) for loss in losses]}, indent=2))
        return
    table = Table(
        Column("data", overflow="fold"),
        *(Column(name, justify="right") for name in ("loss", "perplexity", "bits per byte", "tokens", "bytes")),
        Column("samples", justify="right"),
    )
    for loss in losses:
        table.add_row(escape(loss.data), *_cells(loss))
    console = Console()
    (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def _row(loss: CorpusLoss) -> dict[str, Any]:
    derived = {"loss": loss.loss, "perplexity": loss.perplexity, "bits_per_byte": loss.bits_per_byte}
    return {"data": loss.data, **derived, **{name: value for name, value in asdict(loss).items() if name != "data"}}


def _cells(loss: CorpusLoss) -> Iterator[str]:
    yield f"{loss.loss:.6g}"
    yield f"{loss.perplexity:.6g}"
    yield "-" if loss.bits_per_byte is None else f"{loss.bits_per_byte:.6g}"
    yield f"{loss.tokens:,}"
    yield "-" if loss.bytes is None else f"{loss.bytes:,.12g}"
    yield f"{loss.samples:,}"
