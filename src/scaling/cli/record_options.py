"""Options of `scaling data tokenize` that are about records of fine-tuning data.

Modules that make data sets of records are not imported here: that takes longer than tokenizing 20 MB of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from scaling.core.errors import DataError
from scaling.transformer.data.records.budget import TooLong
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.formats import RecordFormat

FormatName = Enum("FormatName", {"AUTO": "auto", **{form.name: form.value for form in RecordFormat}}, type=str)  # type: ignore[misc]  # made of the formats there are

Format = Annotated[
    FormatName | None,
    typer.Option(
        "--format",
        help="The input, .json or .jsonl, holds records, which stay whole, and not all of whose tokens count in the "
        "loss; auto recognises their format.",
        show_default="texts",
    ),
]
Template = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        help="Jinja template that turns conversations into text.",
        show_default="the one beside the tokenizer",
    ),
]
Learnt = Annotated[
    TrainOn | None,
    typer.Option("--train-on", help="Tokens of a record that count in the loss.", show_default="assistant"),
]
Long = Annotated[
    TooLong | None,
    typer.Option("--too-long", help="Treatment of a record that is longer than --max-length.", show_default="refuse"),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=2,
        metavar="N",
        help="Maximum number of tokens of a record: sequence_length + 1, less those of a soft prompt.",
        show_default="any number",
    ),
]


@dataclass(frozen=True)
class RecordOptions:
    """The options of `tokenize` that are about records."""

    format: FormatName | None
    template: Path | None
    train_on: TrainOn | None
    too_long: TooLong | None
    max_length: int | None

    def require_one_kind(self, of_texts: Mapping[str, object]) -> None:
        """Refuse options for texts, given by name, if the input is records, and options for records if it is texts.

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
