"""From the settings of a checkpoint to those for evaluating a data set, which is read as its training would read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from scaling.core import MemoryMapDocuments, TopologyConfig, open_documents, recorded_eod_token_id
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.record_prefixes import RECORD_FILES

_FILES: Final = ("use_mmap", "load_mmap_index_to_memory")
_TEXTS: Final = ("only_full_sequences", "allow_incomplete_sequences_every_n")
_RECORDS: Final = ("packing", "too_long")
_RECORD_FILES: Final = ("chat_template", "train_on", "max_bad_records", "records_dir")
_KINDS: Final = ("record_format", "finetuning_dataset", "finetuning_chat_dataset", "finetuning_dataset_memory_map")


def evaluation_settings(
    settings: Mapping[str, Any],
    architecture: TransformerArchitectureConfig,
    prefix: Path,
    layout: TopologyConfig,
    *,
    vocab_file: Path | None,
) -> TransformerConfig:
    """Return the configuration of a training that has `prefix` as its only data.

    Of the checkpoint's settings, those that decide the contents of a row and the weight of a target are kept. Whether
    the data are texts or records, and the token that ends documents, are taken from the data where they record it.

    Raises:
        ConfigError: The model cannot be laid out like this, or cannot be used with such data.
        DataError: There are no such data.
    """
    return TransformerConfig.from_dict(
        {
            "transformer_architecture": {
                **architecture.as_dict(),
                "vocab_file": None if vocab_file is None else str(vocab_file),
            },
            "topology": {**layout.as_dict(), "compile": "off"},
            "trainer": {"seed": settings.get("trainer", {}).get("seed", 0)},
            "training": _chosen(settings.get("training", {}), ("loss_function_config",)),
            "data": data_settings(settings.get("data", {}), prefix),
        },
        quiet=True,
    )


def data_settings(trained: Mapping[str, Any], prefix: Path) -> dict[str, Any]:
    """Return the section `data` for the evaluation of `prefix`, from that of the training."""
    end = recorded_eod_token_id(prefix)
    found = {
        **_chosen(trained, _FILES),
        "data_prefixes": [str(prefix)],
        "eod_token_id": trained.get("eod_token_id") if end is None else None,
    }
    if prefix.is_file() and prefix.name.endswith(RECORD_FILES):
        kind = _chosen(trained, _KINDS)
        kind = kind if any(kind.values()) else {"record_format": "auto"}
        return {**found, **_chosen(trained, (*_RECORDS, *_RECORD_FILES)), **kind}
    documents = open_documents(prefix)
    if isinstance(documents, MemoryMapDocuments) and documents.made_by is not None:
        return {**found, **_chosen(trained, _RECORDS), "record_format": "auto"}
    if trained.get("finetuning_dataset_memory_map"):  # such files do not record that they hold records
        return {**found, **_chosen(trained, (*_RECORDS, *_KINDS))}
    return {**found, **_chosen(trained, _TEXTS)}


def _chosen(section: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: section[name] for name in names if name in section}
