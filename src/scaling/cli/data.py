"""`scaling data`: make token data sets and tokenizers, inspect them, and show what a training step consumes.

Modules that read configurations or make records are imported by the commands that use them: their import takes longer
than tokenizing 20 MB of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from scaling.cli.imported import imported
from scaling.cli.record_options import Format, Learnt, Long, MaxLength, RecordOptions, Template
from scaling.cli.token_text import token_text, weighed_text
from scaling.core.data.formats import open_documents
from scaling.core.data.memory_map import MemoryMapDocuments
from scaling.core.errors import DataError
from scaling.core.runner.cores import available_cores
from scaling.core.storage.writing import require_writable
from scaling.transformer.data.encoders import Engine
from scaling.transformer.data.left_out import LeftOut
from scaling.transformer.data.lengths import LONGEST, lengths_of
from scaling.transformer.data.progress import ConsoleProgress
from scaling.transformer.data.readers import MAX_DOCUMENT_BYTES, find_inputs, names_text
from scaling.transformer.data.sampling import sample_texts
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer

app = typer.Typer(
    name="data", help="Make token data sets, look into them, and show what a step consumes.", no_args_is_help=True
)

BAR_WIDTH = 40
LISTED_BAD_RECORDS = 20

Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT",
        help="Files that end in .txt (one document each), .jsonl (one per line) or .parquet (one per row), the first "
        "two also with .gz or .zst; or folders of such files. With --format: .json or .jsonl files of records.",
        show_default=False,
    ),
]
Field = Annotated[
    str, typer.Option(metavar="NAME", help="Key of a .jsonl line, or column of a .parquet file, that holds the text.")
]
MaxBad = Annotated[int, typer.Option(min=0, metavar="N", help="Skip up to this many bad records.")]
MaxDocumentBytes = Annotated[
    int, typer.Option(min=1, metavar="N", help="Count a document of more bytes as a bad record.")
]


def new_prefix(given: str) -> Path:
    """Return the prefix of a data set to write; the name of a folder or of a data set's file is a `DataError`."""
    path = Path(given)
    if given.endswith("/") or path.is_dir():
        raise DataError(
            f"--output {given} is a folder, and a data set is named by the prefix of its files; give a name in it, "
            f"such as {path / 'data'}"
        )
    for suffix in (".bin", ".idx", ".weights", ".meta.json"):
        if given.endswith(suffix):
            raise DataError(
                f"--output {given} would be written to {given}.bin, since a data set is named by the prefix of its "
                f"files; give {given.removesuffix(suffix)}"
            )
    return path


@app.command()
def tokenize(
    inputs: Inputs,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PREFIX",
            help="Data set to write, without .bin.",
            show_default=False,
            parser=new_prefix,
        ),
    ],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", "-t", metavar="FILE", help="Tokenizer.", show_default=False)
    ],
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of processes.", show_default="one per core")
    ] = None,
    field: Field = "text",
    eod_token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Token that ends each document, such as '<eos>'.",
            show_default="what the files beside the tokenizer say, else one of a usual name",
        ),
    ] = None,
    no_append_eod: Annotated[
        bool, typer.Option("--no-append-eod", help="Do not end each document with the end-of-document token.")
    ] = False,
    max_bad: MaxBad = 0,
    max_document_bytes: MaxDocumentBytes = MAX_DOCUMENT_BYTES,
    engine: Annotated[
        Engine,
        typer.Option(help="Engine of the tokenizer. auto: gigatoken where it is installed and gives the same tokens."),
    ] = Engine.AUTO,
    format_name: Format = None,
    chat_template: Template = None,
    train_on: Learnt = None,
    too_long: Long = None,
    max_length: MaxLength = None,
) -> None:
    """Tokenize texts, or with --format records for fine-tuning, into a memory map.

    Texts are tokenized in parallel. A run that was stopped continues where it stopped.
    """
    records = RecordOptions(format_name, chat_template, train_on, too_long, max_length)
    records.require_one_kind(
        {
            "--field": field != "text",
            "--no-append-eod": no_append_eod,
            "--workers": workers,
            "--engine": engine is not Engine.AUTO,
            "--max-document-bytes": max_document_bytes != MAX_DOCUMENT_BYTES,
        }
    )
    if format_name is not None:
        write_records = imported("scaling.cli.records:write_records")
        report = write_records(records, inputs, output, tokenizer, eod_token=eod_token, max_bad=max_bad)
        first, *others = report.lines()
        typer.echo("\n".join([f"{output}: {first}", *others]))
        return
    options = TokenizeOptions(
        tokenizer,
        field=field,
        append_eod=not no_append_eod,
        eod_token=eod_token,
        max_bad=max_bad,
        max_document_bytes=max_document_bytes,
        engine=engine,
    )
    with ConsoleProgress() as progress:
        result = tokenize_files(inputs, output, options, workers=workers or available_cores(), progress=progress)
    end = "" if result.eod_token is None else f", each document ending with {result.eod_token}"
    typer.echo(f"{output}: {result.documents} documents, {result.tokens} tokens{end}")
    typer.echo(result.engine)
    if result.reused_chunks:
        typer.echo(f"went on after {result.reused_chunks} chunks that an earlier run had done")
    _say_left_out(result.left_out)
    if result.empty:
        typer.echo(f"left out {result.empty} documents without text")
    if result.bad:
        typer.echo(f"skipped {len(result.bad)} bad records, all of them listed in {output}.skipped.jsonl:")
        for record in result.bad[:LISTED_BAD_RECORDS]:
            typer.echo(f"  {record}")


def _say_left_out(files: Sequence[LeftOut]) -> None:
    for file in files[:LISTED_BAD_RECORDS]:
        typer.echo(f"left out {file}")
    if len(files) > LISTED_BAD_RECORDS:
        typer.echo(f"left out {len(files) - LISTED_BAD_RECORDS} more such files")


@app.command("train-tokenizer")
def train_tokenizer_command(
    inputs: Inputs,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Tokenizer to write.", show_default=False)
    ],
    vocab_size: Annotated[int, typer.Option(metavar="N", help="Size of the vocabulary.", show_default=False)],
    field: Field = "text",
    max_bytes: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Train on at most this many bytes, taken evenly from all of the text."),
    ] = 100 << 20,
    max_bad: MaxBad = 0,
    max_document_bytes: MaxDocumentBytes = MAX_DOCUMENT_BYTES,
) -> None:
    """Train a byte-level BPE tokenizer. The same texts give the same tokenizer."""
    if output.exists():
        raise DataError(f"{output} exists already; choose another output, or remove it first")
    if names_text(output):
        raise DataError(
            f"--output {output} ends in {output.suffix}, so that the tokenizer would be read as text where it lies "
            "among texts; call it .json"
        )
    left_out: list[LeftOut] = []
    files = find_inputs(inputs, left_out=left_out.append)
    require_writable(output)
    with ConsoleProgress() as progress:
        texts = sample_texts(
            files,
            field=field,
            budget=max_bytes,
            max_bad=max_bad,
            max_document_bytes=max_document_bytes,
            progress=progress,
        )
        first = next(filter(None, texts), None)
        if first is None:
            raise DataError(
                f"there is no text to train a tokenizer on in {', '.join(map(str, inputs))}, or no document fits into "
                f"--max-bytes ({max_bytes}); give other input, or more bytes"
            )
        tokenizer = train_tokenizer(chain([first], texts), vocab_size)
    tokenizer.save(output)
    typer.echo(f"{output}: {tokenizer.vocab_size} tokens, SHA-256 {tokenizer.sha256}")
    _say_left_out(left_out)
    if tokenizer.vocab_size < vocab_size:
        typer.echo(f"note: the text gives no more than {tokenizer.vocab_size} of the {vocab_size} tokens asked for")


@app.command()
def inspect(
    prefix: Annotated[
        Path, typer.Argument(metavar="PREFIX", help="A data set, without .bin: a memory map, or Megatron's.")
    ],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", "-t", metavar="FILE", help="Tokenizer, to show documents as text.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Number of documents to show.")] = 3,
    verify: Annotated[bool, typer.Option("--verify", help="Check every byte of the data set.")] = False,
) -> None:
    """Show counts, lengths and a few documents of a token data set."""
    documents = open_documents(prefix)
    meta = documents.meta if isinstance(documents, MemoryMapDocuments) else None
    recorded = None if meta is None else meta.tokenizer_sha256
    decoder = None if tokenizer is None else Tokenizer.from_file(tokenizer)
    if decoder is not None and recorded not in (None, decoder.sha256):
        raise DataError(
            f"{prefix} was made with a tokenizer of SHA-256 {recorded}, but that of {tokenizer} is {decoder.sha256}, "
            "so the text shown would be wrong; name the tokenizer the data was made with, or none, to see token ids"
        )
    if verify:
        documents.verify()
    typer.echo(
        f"{prefix}: {type(documents).__name__} of {documents.dtype.name}{', every byte verified' if verify else ''}"
    )
    typer.echo(f"documents    {len(documents)}")
    typer.echo(f"tokens       {documents.token_count}")
    if documents.max_token is not None:
        typer.echo(f"largest      {documents.max_token}")
    if meta is not None and meta.eod_token_id is not None:
        named = "" if decoder is None else f" {token_text(np.array([meta.eod_token_id]), decoder)}"
        typer.echo(f"end token    {meta.eod_token_id}{named}")
    if isinstance(documents, MemoryMapDocuments):
        imported("scaling.cli.records:say_kind")(documents)
    if recorded is not None:
        typer.echo(f"tokenizer    SHA-256 {recorded}")
    typer.echo(f"fingerprint  {documents.fingerprint()}")
    lengths = lengths_of(documents.sizes, len(documents))
    typer.echo(
        f"length       {lengths.smallest} to {lengths.largest}, mean {lengths.mean:.1f}, median {lengths.median}"
        f"{' or more' if lengths.median == LONGEST else ''}"
    )
    for line in histogram(lengths.by_bits):
        typer.echo(f"  {line}")
    for index in np.unique(np.linspace(0, len(documents) - 1, samples).astype(np.int64)).tolist():
        if isinstance(documents, MemoryMapDocuments) and documents.made_by is not None:
            weights = documents.weights(index)
            typer.echo(f"\nrecord {index}, {len(weights)} tokens, {int((weights > 0).sum())} of which count:")
            typer.echo(weighed_text(documents.read(index, 0, 200), weights[:200], decoder))
            continue
        typer.echo(f"\ndocument {index}, {documents.size(index)} tokens:")
        typer.echo(token_text(documents.read(index, 0, 200), decoder))


@app.command()
def show(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, such as trainer.seed=1.", show_default=False),
    ] = None,
    step: Annotated[int, typer.Option(metavar="N", help="The training step, counted from 1.")] = 1,
    consumed_samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Samples consumed before the step, if it does not follow from metrics, checkpoints or batch size.",
        ),
    ] = None,
) -> None:
    """Show exactly the samples that a training step consumes: text, documents and offsets.

    If the batch size was changed on resume, the start of the step is found from
    the metrics in logger.log_dir and the checkpoints in trainer.save_dir.
    """
    say_step = imported("scaling.cli.consumed_text:say_step")
    say_step(config, overrides or (), step=step, consumed_samples=consumed_samples)


def histogram(by_bits: Sequence[int]) -> list[str]:
    """Return a line for each number of bits, from the first that occurs: how many sizes have so many bits."""
    lines = []
    for bit, count in enumerate(by_bits):
        if not any(by_bits[: bit + 1]):
            continue
        first, last = (0, 0) if bit == 0 else (1 << (bit - 1), (1 << bit) - 1)
        bar = "#" * round(BAR_WIDTH * count / max(by_bits))
        lines.append(f"{first:>10} - {last:<10} {count:>10} {bar}".rstrip())
    return lines
