"""The part of `scaling data` that is about records of fine-tuning data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from scaling.cli.record_options import FormatName, RecordOptions
from scaling.core.data.memory_map import MemoryMapDocuments
from scaling.core.errors import DataError
from scaling.transformer.data.progress import ConsoleProgress
from scaling.transformer.data.record_files import RecordReport, RecordTokenizer
from scaling.transformer.data.record_kinds import CHAT_TEMPLATE, FORMAT, TRAIN_ON
from scaling.transformer.data.record_prefixes import chat_template
from scaling.transformer.data.records.budget import RecordBudget, TooLong
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.tokenizer import Tokenizer


def write_records(
    records: RecordOptions,
    inputs: Sequence[Path],
    output: Path,
    tokenizer_file: Path,
    *,
    eod_token: str | None,
    max_bad: int,
) -> RecordReport:
    """Make a data set from files of records.

    Raises:
        DataError: An input, the tokenizer or the template is unusable, or the data set exists already.
        DataRefusedError: There are more bad records than allowed.
        StorageError: A file cannot be read or written.
    """
    for path in inputs:
        if path.is_dir():
            raise DataError(f"{path} is a folder; name the files of records in it")
    tokenizer = Tokenizer.from_file(tokenizer_file, end_token=eod_token)
    maker = RecordTokenizer(
        tokenizer,
        template=chat_template(records.template, tokenizer_file),
        format=None if records.format in (None, FormatName("auto")) else RecordFormat(records.format.value),
        train_on=records.train_on or TrainOn.ASSISTANT,
        eod_token_id=tokenizer.eos_token_id,
    )
    budget = RecordBudget(max_bad=max_bad, longest=records.max_length, too_long=records.too_long or TooLong.REFUSE)
    with ConsoleProgress() as progress:
        return maker.write(inputs, output, budget, progress=progress)


def say_kind(documents: MemoryMapDocuments) -> None:
    """Print the format a data set of records was made from, and how many of its tokens count."""
    made_by = documents.made_by
    if made_by is None:
        return
    template = made_by.get(CHAT_TEMPLATE)
    by = f", by a chat template of SHA-256 {template[:16]}..." if template else ""
    typer.echo(f"records      of {made_by.get(FORMAT)}, to train on {made_by.get(TRAIN_ON)}{by}")
    typer.echo(f"counted      {documents.counted_tokens()} tokens count in the loss")
