"""Make data sets from the files of records that a configuration names as its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from scaling.core import ConfigError, Problem
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.records import RecordSettings
from scaling.transformer.data.progress import ProgressCallback
from scaling.transformer.data.record_files import RecordTokenizer, tokenized_once
from scaling.transformer.data.record_rows import RowRules
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.source import recorded_end
from scaling.transformer.data.tokenizer import Tokenizer

FIELDS = ("data_prefixes", "validation_data_prefixes")
RECORD_FILES = tuple(plain + packed for plain in (".json", ".jsonl") for packed in ("", ".gz", ".zst"))
"""Suffixes of files of records."""


def named_files(data: DataConfig) -> Iterator[tuple[str, Path]]:
    """Yield the setting and the path of each file of records that is named as data."""
    if (settings := data.records) is not None and not settings.prompt_lengths:
        for name in FIELDS:
            yield from (
                (f"data.{name}.{index}", path) for index, path in enumerate(getattr(data, name) or ()) if path.is_file()
            )


def row_rules(architecture: TransformerArchitectureConfig, settings: RecordSettings, *, padding: int = 0) -> RowRules:
    """Return the rules for placing records in the sequences of a model."""
    prompt = architecture.softprompt_config
    return RowRules(
        architecture.sequence_length,
        packing=settings.packing,
        placeholders=0 if prompt is None else prompt.n_tokens,
        too_long=settings.too_long,
        padding=padding,
    )


def tokenized_records(
    data: DataConfig,
    architecture: TransformerArchitectureConfig,
    tokenizer: Tokenizer | None,
    progress: ProgressCallback,
) -> Mapping[str, list[Path] | None]:
    """Return the prefixes of a configuration's data, with files of records replaced by the data sets made from them.

    Raises:
        ConfigError: There is no tokenizer.
        DataError: A file, the chat template or the tokenizer is unusable.
        StorageError: A data set cannot be written.
    """
    settings, files = data.records, list(named_files(data))
    if settings is None or not files:
        return {}
    if tokenizer is None or architecture.vocab_file is None:
        raise ConfigError(
            Problem(
                "transformer_architecture.vocab_file",
                f"is not given, and {files[0][0]} ({files[0][1]}) is a file of records, which it tokenizes; name one",
            )
        )
    end = recorded_end(data)
    encoder = RecordTokenizer(
        tokenizer,
        template=chat_template(settings.chat_template, architecture.vocab_file),
        format=settings.format,
        train_on=settings.train_on or TrainOn.ASSISTANT,
        eod_token_id=tokenizer.eos_token_id if end is None else end,
    )
    longest = row_rules(architecture, settings).longest
    made = {
        path: tokenized_once(path, data.records_dir, encoder, settings, longest=longest, progress=progress)
        for path in dict.fromkeys(path for _, path in files)
    }
    given = {name: getattr(data, name) for name in FIELDS}
    return {name: paths and [made.get(path, path) for path in paths] for name, paths in given.items()}


def chat_template(file: Path | None, vocab_file: Path) -> ChatTemplate | None:
    """Return the template in a file, or else the one beside the tokenizer; None where there is none.

    Raises:
        DataError: The template cannot be read, or is not one.
    """
    if file is not None:
        return ChatTemplate.from_file(file, vocab_file=vocab_file)
    return ChatTemplate.beside(vocab_file)
