"""`scaling checkpoint`: list, verify, compare, cast, merge and import checkpoints, without processes or a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import Enum
from math import prod
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from scaling.cli.places import checkpoints_at
from scaling.cli.predecessor_settings import read_settings, tokenizer_of
from scaling.core.checkpoint.base import BASE, BaseReference, glance_at_base, is_on_base, reference_problems
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX, list_steps, step_of
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.predecessor_import import import_predecessor, predecessor_step_folder
from scaling.core.checkpoint.reader import Difference, cast, differences
from scaling.core.checkpoint.resume import ABSENT, differing_values
from scaling.core.checkpoint.search import find_newest, is_step_folder, name_problems
from scaling.core.checkpoint.verify import file_problems, quick_problems, read_manifest, strange_files
from scaling.core.errors import CheckpointError, ExitStatus, StorageError
from scaling.transformer.data.tokenizer import TOKENIZER_FILE
from scaling.transformer.finetuning.merge_checkpoint import base_meant, companions_of_merged, merge_checkpoint
from scaling.transformer.hf.companions import companions_of_checkpoints, companions_of_predecessor, require_place

app = typer.Typer(
    name="checkpoint", help="List, verify, compare, cast, merge and import checkpoints.", no_args_is_help=True
)

PIPE_WIDTH = 160


class Precision(str, Enum):
    """The floating-point types that weights can be cast to."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


TORCH_PRECISIONS: Mapping[Precision, torch.dtype] = {kind: getattr(torch, kind.value) for kind in Precision}

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder of checkpoints, or one step's folder.", show_default=False)
]
Source = Annotated[
    Path, typer.Argument(metavar="SRC", help="One step's folder, or a folder of checkpoints: its newest.")
]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write global_step<N> into.")]


@app.command("ls")
def list_checkpoints(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List checkpoints with size, contents and state. Only names and sizes are checked; `verify` reads every byte."""
    rows = [_row(folder) for folder in _step_folders(directory)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("step", "state", "saved at", "size", "parameters", "optimizer", "ranks", "version")
    for row in rows:
        table.add_row(*map(escape, _row_cells(row)))
    _console().print(table)
    for row in rows:
        for problem in row["problems"]:
            typer.echo(f"{row['path']}: {problem}")
        if row.get("base"):
            typer.echo(f"{row['path']}: trained on the base {row['base']['path']}, step {row['base']['step']}")


@app.command()
def verify(path: Directory) -> None:
    """Read every byte and compare it with the digests; exit with status 2 if anything is damaged or incomplete.

    If something could not be read and nothing else is wrong, the status is 74.
    """
    damaged = unreadable = 0
    for folder in _step_folders(path):
        try:
            manifest = read_manifest(folder)
            problems = name_problems(folder, manifest) + quick_problems(folder, manifest)
            problems = problems or _read_all(folder, manifest)
        except CheckpointError as error:
            problems = [str(error)]
        except OSError as error:
            unreadable += 1
            typer.echo(f"{folder}: CANNOT BE READ\n  {error}")
            continue
        if problems:
            damaged += 1
            typer.echo(f"{folder}: DAMAGED")
            for problem in problems:
                typer.echo(f"  {problem}")
            continue
        typer.echo(f"{folder}: intact, {_bytes(manifest.bytes)} in {len(manifest.files)} files")
        if is_on_base(manifest):
            typer.echo(f"  {_state_of_base(manifest)}")
        for name in strange_files(folder, manifest)[1]:
            typer.echo(f"  {name} does not belong to the checkpoint and is ignored")
    if damaged:
        raise typer.Exit(ExitStatus.USER_INPUT)
    if unreadable:
        raise typer.Exit(ExitStatus.STORAGE)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another checkpoint.", show_default=False)],
    everything: Annotated[bool, typer.Option("--all", help="List equal tensors too.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with status 1 if a tensor differs.")] = False,
) -> None:
    """Compare two checkpoints tensor by tensor, whatever layouts they were saved in, and their scalars."""
    a, b = (find_newest(checkpoints_at(given)).require() for given in (first, second))
    table = Table(Column("tensor", overflow="fold"), "elements that differ", "largest absolute", "largest relative")
    table.add_column("remark", overflow="fold")
    total = unequal = 0
    states = [stored.manifest.holds(OPTIMIZER_PREFIX) for stored in (a, b)]
    for found in differences(a, b):
        total += 1
        unequal += not found.is_equal
        told_once = found.name.startswith(OPTIMIZER_PREFIX) and not all(states)
        if everything or not (found.is_equal or told_once):
            table.add_row(*map(escape, _cells(found)))
    if table.row_count:
        _console().print(table)
    if any(states) and not all(states):
        typer.echo(f"{(b if states[0] else a).path} holds no optimizer states, {(a if states[0] else b).path} does")
    for path, *values in differing_values(a.manifest.scalars, b.manifest.scalars):
        typer.echo(f"{path}: {' and '.join(map(_shown, values))}")
    typer.echo(f"{unequal} of {total} tensors differ between {a.path} and {b.path}")
    if unequal and exit_code:
        raise typer.Exit(ExitStatus.FAILURE)


@app.command("cast")
def cast_checkpoint(
    source: Source,
    target: Target,
    dtype: Annotated[
        Precision, typer.Option(metavar="TYPE", help="float64, float32, bfloat16 or float16.", show_default=False)
    ],
) -> None:
    """Write the model's weights in another precision, with their tokenizer. Optimizer states are left out."""
    stored = find_newest(checkpoints_at(source), weights_only=True).require()
    beside = stored.path.absolute().parent
    companions = companions_of_checkpoints(beside)
    require_place(companions, beside, target)
    typer.echo(f"wrote {cast(stored, target, TORCH_PRECISIONS[dtype])}")
    companions.write(target, tokenizer_name=TOKENIZER_FILE)


@app.command("merge")
def merge_adapters(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The base that was fine-tuned, wherever it is now.")],
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Adapters that were trained on it.")],
    target: Target,
) -> None:
    """Merge adapters into the base that they were trained on: a whole model, to train, to export and to generate with.

    Several adapters are merged one after the other. Tokenizer and templates are copied.
    """
    opened = [find_newest(checkpoints_at(adapter), weights_only=True).require() for adapter in adapters]
    stored = base_meant(checkpoints_at(base), opened[0])
    companions = companions_of_merged(stored, opened[-1])
    require_place(companions, stored.path.absolute().parent, target)
    typer.echo(f"wrote {merge_checkpoint(stored, opened, target)}")
    companions.write(target, tokenizer_name=TOKENIZER_FILE)


@app.command("import")
def import_checkpoint(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A checkpoint of Aleph-Alpha/scaling 0.1 or 0.2.", show_default=False)
    ],
    target: Target,
    step: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Step number.", show_default="the folder's, else 0")
    ] = None,
) -> None:
    """Convert the model of a layer-wise checkpoint (model_state_layer_<i>_<Class>.pt); nothing in it is executed.

    Its config.yml and its tokenizer (vocab.json in SRC or beside it) are carried over, for `scaling generate`.
    """
    folder = predecessor_step_folder(checkpoints_at(source))
    tokenizer_file = tokenizer_of(folder)
    companions = companions_of_predecessor(tokenizer_file)
    require_place(companions, tokenizer_file.parent, target)
    settings = read_settings(folder / "config.yml", tokenizer_file)
    written = import_predecessor(folder, target, step=step, num_layers=settings.num_layers, scalars=settings.scalars)
    typer.echo(f"wrote {written}")
    companions.write(target, tokenizer_name=TOKENIZER_FILE)
    for remark in settings.remarks:
        typer.echo(remark, err=True)


def _step_folders(directory: Path) -> list[Path]:
    meant = checkpoints_at(directory)
    try:
        return [meant] if is_step_folder(meant) else list_steps(meant)
    except OSError as error:
        raise StorageError(f"{meant} cannot be read: {error}") from error


def _row(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(folder)
        problems = quick_problems(folder, manifest)
    except (CheckpointError, OSError) as error:
        return {"step": step_of(folder.absolute()), "path": str(folder), "state": "unusable", "problems": [str(error)]}
    model = {name: entry for name, entry in manifest.tensors.items() if not name.startswith(OPTIMIZER_PREFIX)}
    return {
        "step": manifest.step,
        "path": str(folder),
        "state": "damaged" if problems else "complete",
        "problems": problems,
        "bytes": manifest.bytes,
        "parameters": sum(prod(entry.shape) for entry in model.values()),
        "optimizer": manifest.holds(OPTIMIZER_PREFIX),
        "base": None if reference_problems(manifest.scalars) else manifest.scalars.get(BASE),
        **{key: manifest.information.get(key) for key in ("saved_at", "ranks", "scaling")},
    }


def _state_of_base(manifest: Manifest) -> str:
    """Return where the base of a fine-tuning should be, and whether it is there, judging by names and sizes."""
    if problems := reference_problems(manifest.scalars):
        return "; ".join(problems)
    reference = BaseReference.of(manifest.scalars)
    if reference is None:
        return "trained without a base: what was frozen had its initial values"
    if glance_at_base(reference) is None:
        return f"trained on the base {reference}, which is there"
    return f"trained on the base {reference}, which is not there; trainer.load_dir can name another place"


def _shown(value: object) -> str:
    return "nothing" if value is ABSENT else repr(value)


def _row_cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row, which are fewer where the manifest could not be read."""
    cells = [str(row["step"]), row["state"]]
    if "bytes" in row:
        optimizer = "yes" if row["optimizer"] else "no"
        cells += [str(row["saved_at"]), _bytes(row["bytes"]), f"{row['parameters']:,}", optimizer]
        cells += [str(row["ranks"]), str(row["scaling"])]
    return cells


def _read_all(folder: Path, manifest: Manifest) -> list[str]:
    """Verify all files, and show the progress."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(folder.name, total=manifest.bytes)
        return file_problems(folder, manifest, manifest.files, advance=lambda size: progress.advance(task, size))


def _cells(found: Difference) -> Iterable[str]:
    if found.elements:
        numbers = f"{found.elements:,}", f"{found.largest_absolute:.3g}", f"{found.largest_relative:.3g}"
    else:
        numbers = ("", "", "")
    return found.name, *numbers, found.note or ("equal" if found.is_equal else "")


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)
