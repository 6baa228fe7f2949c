"""The settings of `data` for records of fine-tuning data, and the rules for reading and packing records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from scaling.core import BaseConfig, Problem
from scaling.transformer.data.records.budget import TooLong
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.formats import RecordFormat

FORMER: Mapping[str, RecordFormat | None] = {
    "finetuning_dataset_memory_map": None,
    "finetuning_dataset": RecordFormat.PROMPT_COMPLETION,
    "finetuning_chat_dataset": RecordFormat.PIECES,
}
"""The predecessor's settings, and the formats of their files. Two of them may be set for a memory map."""


@dataclass(frozen=True)
class RecordSettings:
    """How records are read and packed into rows."""

    format: RecordFormat | None
    """None: the recognised format, or the one that a data set records."""
    chat_template: Path | None
    """None: the tokenizer's, or the one that a data set was made with."""
    train_on: TrainOn | None
    """None: the assistant's turns, or the choice that a data set was made with."""
    packing: bool
    too_long: TooLong
    max_bad: int
    prompt_lengths: bool = False
    """Whether the data sets are memory maps of the predecessor, where each document is the length of a prompt, the
    prompt, and its completion."""


class RecordDataConfig(BaseConfig):
    """The paths of the data, and the settings for data that are records of fine-tuning data."""

    data_prefixes: list[Path] | None = None
    """Memory-mapped token data sets (paths without .bin / .idx), as `scaling data tokenize` writes them; for records
    (record_format) JSON and JSON lines files too. null: use corpus."""
    validation_data_prefixes: list[Path] | None = None
    """Data sets for validation, as in data_prefixes. null: validation_fraction of the training documents."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training documents, or records, that is held out for validation where there are no
    validation_data_prefixes. 0: none."""
    record_format: Literal["auto"] | RecordFormat | None = None
    """Train on records instead of a stream of texts. Records stay whole, and not every token counts in the loss. auto:
    recognise the format of each file, or take the one that a data set records; otherwise the name of a format. null:
    texts."""
    chat_template: Path | None = None
    """File with the Jinja template that turns conversations into text. null: the tokenizer's, or the one that a data
    set was made with."""
    train_on: TrainOn | None = None
    """Which tokens of a record count in the loss: those of the assistant's turns (assistant), of its last turn (last),
    or all. null: assistant, or the choice that a data set was made with."""
    packing: bool | None = None
    """Put as many whole records in a sequence as there is room for. false: one record per sequence. null: true, but
    false for the predecessor's finetuning settings."""
    too_long: TooLong | None = None
    """Treatment of a record that is longer than a sequence: refuse, drop, cut_right or cut_left. null: refuse, but
    cut_right for the predecessor's finetuning settings."""
    max_bad_records: int = Field(default=0, ge=0)
    """Leave out, and name, up to this many unusable records of each file."""
    records_dir: Path = Path(".data")
    """Folder in which the tokens of JSON files named as data are kept, or found if they were made before."""
    finetuning_dataset: bool = False
    """The predecessor's form of record_format: prompt_completion, without packing."""
    finetuning_chat_dataset: bool = False
    """The predecessor's form of record_format: pieces, without packing."""
    finetuning_dataset_memory_map: bool = False
    """The prefixes name memory maps of the predecessor with prompts and completions."""

    @property
    def records(self) -> RecordSettings | None:
        """Return how records are read; None where the data are a stream of texts.

        The predecessor gave each record a sequence of its own and cut off records that were too long. Its settings do
        the same.
        """
        former = self._former()
        if self.record_format is None and not former:
            return None
        named = FORMER[former[0]] if former else self.record_format
        usual = TooLong.CUT_RIGHT if former else TooLong.REFUSE
        return RecordSettings(
            format=named if isinstance(named, RecordFormat) else None,
            chat_template=self.chat_template,
            train_on=self.train_on,
            packing=not former if self.packing is None else self.packing,
            too_long=usual if self.too_long is None else self.too_long,
            max_bad=self.max_bad_records,
            prompt_lengths=self.finetuning_dataset_memory_map,
        )

    def _former(self) -> list[str]:
        given = {
            "finetuning_dataset_memory_map": self.finetuning_dataset_memory_map,
            "finetuning_dataset": self.finetuning_dataset,
            "finetuning_chat_dataset": self.finetuning_chat_dataset,
        }
        return [name for name in FORMER if given[name]]

    def record_problems(self) -> Iterator[Problem]:
        """Check that the kind of data is given once, and settings for records only where the data are records."""
        former = self._former()
        if self.finetuning_chat_dataset and len(former) > 1:
            yield Problem("finetuning_chat_dataset", f"and {former[0]} are both true; set one of them to false")
        if former and self.record_format is not None:
            yield Problem(
                "record_format",
                f"and {former[0]}, the predecessor's way to say the same, are both given; remove {former[0]}",
            )
        if self.records is None:
            given = {
                "chat_template": self.chat_template,
                "train_on": self.train_on,
                "packing": self.packing,
                "too_long": self.too_long,
                "max_bad_records": self.max_bad_records or None,
            }
            for name in (name for name, value in given.items() if value is not None):
                yield Problem(name, "is about records of fine-tuning data; set record_format to auto, or remove it")
