"""The part of `scaling data` that is about records of fine-tuning data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

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

FormatName = Enum("FormatName", {"AUTO": "auto", **{form.name: form.value for form in RecordFormat}}, type=str)  # type: ignore[misc]  # made of the formats there are

Format = Annotated[
    FormatName | None,
    typer.Option(
        "--format",
        help="The input, .json or .jsonl, holds records, which stay whole and of which not every token counts; auto "
        "recognises their format.",
        show_default="texts",
    ),
]
Template = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        help="Jinja template by which conversations become text.",
        show_default="the one beside the tokenizer",
    ),
]
Learnt = Annotated[
    TrainOn | None,
    typer.Option("--train-on", help="Which tokens of a record count.", show_default="assistant"),
]
Long = Annotated[
    TooLong | None,
    typer.Option("--too-long", help="What becomes of a record above --max-length.", show_default="refuse"),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=2,
        metavar="N",
        help="The most tokens of a record: sequence_length + 1, less those of a soft prompt.",
        show_default="any number",
    ),
]


@dataclass(frozen=True)
class RecordOptions:
    """What `tokenize` is told about records."""

    format: FormatName | None
    template: Path | None
    train_on: TrainOn | None
    too_long: TooLong | None
    max_length: int | None

    def require_one_kind(self, of_texts: Mapping[str, object]) -> None:
        """Refuse options for texts, given by their names, beside records, and those for records beside texts.

        Raises:
            DataError: An option is about the other kind of data.
        """
        of_records = {
            "--chat-template": self.template,
            "--train-on": self.train_on,
            "--too-long": self.too_long,
            "--max-length": self.max_length,
        }
        other = of_records if self.format is None else of_texts
        wrong = next((name for name, value in other.items() if value), None)
        if wrong is not None and self.format is None:
            raise DataError(f"{wrong} is about records; name their format with --format, or auto, or leave {wrong} out")
        if wrong is not None:
            raise DataError(f"{wrong} is about texts, and --format says that these are records; leave one out")

    def write(
        self, inputs: Sequence[Path], output: Path, tokenizer_file: Path, *, eod_token: str | None, max_bad: int
    ) -> RecordReport:
        """Make a data set of files of records.

        Raises:
            DataError: An input, the tokenizer or the template is unusable, or the data set exists already.
            DataRefusedError: More records are bad than may be.
            StorageError: A file cannot be read or written.
        """
        for path in inputs:
            if path.is_dir():
                raise DataError(f"{path} is a folder; name the files of records in it")
        tokenizer = Tokenizer.from_file(tokenizer_file, end_token=eod_token)
        maker = RecordTokenizer(
            tokenizer,
            template=chat_template(self.template, tokenizer_file),
            format=None if self.format in (None, FormatName("auto")) else RecordFormat(self.format.value),
            train_on=self.train_on or TrainOn.ASSISTANT,
            eod_token_id=tokenizer.eos_token_id,
        )
        budget = RecordBudget(max_bad=max_bad, longest=self.max_length, too_long=self.too_long or TooLong.REFUSE)
        with ConsoleProgress() as progress:
            return maker.write(inputs, output, budget, progress=progress)


def say_kind(documents: MemoryMapDocuments) -> None:
    """Say what a data set of records was made of, and how much of it counts."""
    made_by = documents.made_by
    if made_by is None:
        return
    template = made_by.get(CHAT_TEMPLATE)
    by = f", by a chat template of SHA-256 {template[:16]}..." if template else ""
    typer.echo(f"records      of {made_by.get(FORMAT)}, to train on {made_by.get(TRAIN_ON)}{by}")
    typer.echo(f"counted      {documents.counted_tokens()} tokens count in the loss")
