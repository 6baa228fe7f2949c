"""The kind that a data set of records has recorded, and whether a configuration asks for that kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from scaling.core import DataError, MemoryMapDocuments, TokenDocuments
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.records import RecordSettings
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.template import ChatTemplate

FORMAT: Final = "format"
TRAIN_ON: Final = "train_on"
CHAT_TEMPLATE: Final = "chat_template"
"""The recorded items: the names of formats, which tokens count, and the SHA-256 of the template, empty without one."""


def made_by(formats: str, train_on: TrainOn, template: ChatTemplate | None) -> dict[str, str]:
    """Return the kind of a data set of records, to be recorded in it."""
    digest = "" if template is None else hashlib.sha256(template.source.encode()).hexdigest()
    return {FORMAT: formats, TRAIN_ON: train_on.value, CHAT_TEMPLATE: digest}


def require_kind(prefix: Path, documents: TokenDocuments, data: DataConfig) -> None:
    """Refuse records where texts are to be read, texts where records are, and records made with other settings.

    Raises:
        DataError: The data set is of another kind.
    """
    recorded = documents.made_by if isinstance(documents, MemoryMapDocuments) else None
    settings = data.records
    if settings is None:
        if recorded is not None:
            raise DataError(
                f"{prefix} holds records ({recorded.get(FORMAT)}), which stay whole, and this configuration reads a "
                "stream of texts; set data.record_format to auto, with nothing but records in data.data_prefixes and "
                "data.validation_data_prefixes"
            )
    elif settings.prompt_lengths:
        if recorded is not None:
            raise DataError(
                f"{prefix} was written by `scaling data tokenize`, and data.finetuning_dataset_memory_map reads the "
                "predecessor's memory maps; set data.record_format to auto in its place"
            )
    elif recorded is None:
        raise DataError(
            f"{prefix} holds texts, and this configuration reads records (data.record_format), which cannot be mixed "
            "with texts in one run; make records with `scaling data tokenize --format`, or name their JSON file"
        )
    elif problem := next(_differences(recorded, settings), None):
        raise DataError(f"{prefix} {problem}; tokenize it again, or set this to null to take the data as they are")


def _differences(recorded: Mapping[str, Any], settings: RecordSettings) -> Iterator[str]:
    """Yield the differences between what a data set records and the settings of a configuration."""
    formats = str(recorded.get(FORMAT)).split(" ")
    if settings.format is not None and settings.format.value not in formats:
        yield f"was made of records of {' and '.join(formats)}, not of data.record_format {settings.format.value}"
    if settings.train_on is not None and settings.train_on.value != recorded.get(TRAIN_ON):
        yield f"was made to train on {recorded.get(TRAIN_ON)}, not data.train_on {settings.train_on.value}"
    if settings.chat_template is not None and recorded.get(CHAT_TEMPLATE):
        template = ChatTemplate.from_file(settings.chat_template)
        digest = hashlib.sha256(template.source.encode()).hexdigest()
        if digest != recorded[CHAT_TEMPLATE]:
            yield (
                f"was made with a chat template of SHA-256 {recorded[CHAT_TEMPLATE][:16]}..., but that of "
                f"data.chat_template ({settings.chat_template}) is {digest[:16]}..."
            )
