"""`scaling hf`: import models from Hugging Face folders and export them to such, without network or GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.cli.byte_sizes import bytes_of
from scaling.cli.checkpoint import TORCH_PRECISIONS, Precision
from scaling.cli.places import checkpoints_at
from scaling.core.checkpoint.search import find_newest
from scaling.transformer.hf.check import check_export, reason_not_to_check
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.importer import import_model
from scaling.transformer.hf.new_folder import require_free
from scaling.transformer.hf.peft.exporter import export_adapter
from scaling.transformer.hf.peft.importer import import_adapter

app = typer.Typer(name="hf", help="Import models of Hugging Face, and export to them.", no_args_is_help=True)


@app.command("import")
def import_folder(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="Folder with config.json and model.safetensors.", show_default=False),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="Folder to write global_step0 into.", show_default=False)
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="BASE",
            help="SRC is a PEFT adapter for this checkpoint: one step's folder, or a folder of checkpoints.",
            show_default="SRC is a model",
        ),
    ] = None,
) -> None:
    """Write a checkpoint, its tokenizer and templates, and a configuration that continues training from there.

    The model is read piece by piece, whatever its size. Nothing in the folder is executed, and pickles are refused.

    With --base, write an adapter checkpoint: the parameters that PEFT has added to the base.
    """
    if base is not None:
        adapter = import_adapter(source, target, find_newest(checkpoints_at(base), weights_only=True).require())
        typer.echo(f"wrote {adapter.checkpoint}, an adapter ({adapter.method}) on {adapter.base}")
        return
    done = import_model(source, target)
    typer.echo(f"wrote {done.checkpoint}, a model of the family {done.model_type}")
    typer.echo(f"wrote {done.config_file}: name your data in it, then scaling train {done.config_file}")
    for remark in done.remarks:
        typer.echo(f"note: {remark}", err=True)


@app.command("export")
def export_folder(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="One step's folder, or a folder of checkpoints: its newest."),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="Folder to write; it must be empty, or not exist.", show_default=False)
    ],
    dtype: Annotated[
        Precision | None,
        typer.Option(
            metavar="TYPE", help="float64, float32, bfloat16 or float16.", show_default="as the weights are stored"
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest size of a file, such as 500MB, 5GB or 2GiB.")
    ] = "5GB",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare logits afterwards, where transformers is installed.")
    ] = True,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write an adapter that was trained on a base as a PEFT adapter.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="BASE", help="With --adapter: the place of its base.", show_default="where it was in training"
        ),
    ] = None,
) -> None:
    """Write a checkpoint of any layout as a folder that transformers, vLLM and others read."""
    size = bytes_of(max_shard_size, option="--max-shard-size")
    require_free(target)
    rounded = None if dtype is None else TORCH_PRECISIONS[dtype]
    if base is not None and not adapter:
        raise typer.BadParameter("only goes with --adapter", param_hint="--base")
    stored = find_newest(checkpoints_at(source), weights_only=True).require()
    if adapter:
        written = export_adapter(stored, target, dtype=rounded, base=base)
        typer.echo(f"wrote {written.path}, an adapter of PEFT ({written.method})")
        for remark in written.remarks:
            typer.echo(f"note: {remark}", err=True)
        return
    done = export_model(stored, target, dtype=rounded, max_shard_bytes=size)
    files = f"{len(done.files)} file{'' if len(done.files) == 1 else 's'}"
    typer.echo(f"wrote {done.path}, a model of the family {done.model_type} in {files} of weights")
    for remark in done.remarks:
        typer.echo(f"note: {remark}", err=True)
    if check:
        if reason_not_to_check() is None:
            typer.echo("running a few tokens through both; --no-check leaves that out", err=True)
        typer.echo(check_export(stored.path, done.path, dtype=rounded).remark)
