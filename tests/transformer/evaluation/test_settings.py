"""Data are read as the training of a checkpoint would have read them, whatever that training's own data were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.core import DataError, MemoryMapDatasetBuilder
from scaling.transformer.config.data import DataConfig
from scaling.transformer.data.records.conversation import TrainOn
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.evaluation.settings import data_settings

TEXTS = DataConfig(only_full_sequences=True, eod_token_id=5, use_mmap=False, data_prefixes=[Path("elsewhere")])
RECORDS = DataConfig(
    record_format=RecordFormat.MESSAGES,
    packing=False,
    train_on=TrainOn.ALL,
    max_bad_records=3,
    records_dir=Path("kept"),
    data_prefixes=[Path("elsewhere")],
    validation_fraction=0.5,
)
FORMER = DataConfig(finetuning_dataset_memory_map=True, data_prefixes=[Path("elsewhere")])


def read(trained: DataConfig, prefix: Path) -> DataConfig:
    found = DataConfig.from_dict(data_settings(trained.as_dict(), prefix), quiet=True)
    assert (found.data_prefixes, found.validation_fraction) == ([prefix], 0.0)
    return found


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """Return texts, texts that tell how they end, records, and a file of records."""
    made: dict[str, dict[str, Any]] = {
        "texts": {},
        "ended": {"eod_token_id": 2},
        "records": {"made_by": {"format": "messages", "train_on": "assistant"}},
    }
    for name, options in made.items():
        with MemoryMapDatasetBuilder(tmp_path / name, "int32", **options) as builder:
            builder.add([1, 2], weights=[0, 1]) if name == "records" else builder.add([1, 2])
    (tmp_path / "file.jsonl").write_text("{}")
    return {name: tmp_path / name for name in (*made, "file.jsonl")}


@pytest.mark.parametrize("trained", [TEXTS, RECORDS])
def test_texts_are_texts_with_the_end_that_they_tell_of(trained: DataConfig, data: dict[str, Path]) -> None:
    for name, end in (("texts", trained.eod_token_id), ("ended", None)):  # None: left to the data
        found = read(trained, data[name])
        assert found.records is None
        assert found.eod_token_id == end
        assert (found.only_full_sequences, found.use_mmap) == (trained.only_full_sequences, trained.use_mmap)


def test_records_are_taken_as_they_are_and_laid_out_as_in_the_training(data: dict[str, Path]) -> None:
    plain, trained = read(TEXTS, data["records"]).records, read(RECORDS, data["records"]).records
    assert plain is not None
    assert trained is not None
    assert (plain.format, plain.packing, plain.train_on) == (None, True, None)
    assert (trained.format, trained.packing, trained.train_on) == (None, False, None)
    assert not read(TEXTS, data["records"]).only_full_sequences


def test_files_of_records_become_tokens_as_in_the_training(data: dict[str, Path]) -> None:
    plain, trained = read(TEXTS, data["file.jsonl"]).records, read(RECORDS, data["file.jsonl"])
    assert plain is not None
    assert (plain.format, plain.max_bad) == (None, 0)
    assert trained.records == RECORDS.records
    assert trained.records_dir == Path("kept")


def test_memory_maps_of_the_predecessor_are_those_of_its_own_trainings(data: dict[str, Path]) -> None:
    found = read(FORMER, data["texts"]).records
    assert found == FORMER.records
    assert (again := read(FORMER, data["records"]).records) is not None
    assert not again.prompt_lengths


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.meta\.json does not exist"):
        data_settings({}, tmp_path / "nothing")
