"""From a prepared configuration to data sets: parts, options, and data that does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.errors import DataError
from scaling.transformer.data import source
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.tokenizer import tokenizer_digest, train_tokenizer
from tests.transformer.data.small_data import config, make_data


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["some text"], 300).save(path)
    return path


def test_validation_documents_are_held_out_of_every_training_set(tmp_path: Path) -> None:
    prefixes = [str(make_data(tmp_path / name, documents=count)) for name, count in (("a", 40), ("b", 1), ("c", 60))]
    train, validation = load_datasets(prepare_data(config(data_prefixes=prefixes, validation_fraction=0.2)))
    assert validation is not None
    used = [
        {
            (sample.source, span.document)
            for index in range(len(part))
            for sample in [part[index]]
            for span in sample.spans
        }
        for part in (train, validation)
    ]
    assert len(used[0] | used[1]) == 101
    assert not used[0] & used[1]
    assert validation.names == (prefixes[0], prefixes[2])
    counted = sum(
        float(validation.collate([validation[index]], [0], [True]).targets.loss_weights.sum())
        for index in range(len(validation))
    )
    sizes = {prefix: MemoryMapDataset(prefix).sizes() for prefix in prefixes}
    assert counted == sum(int(sizes[source][document]) - 1 for source, document in used[1])


def test_a_configuration_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"vocab_size": 0}
    for unprepared in (config(corpus="python_stdlib"), config(unknown, data_prefixes=[str(tmp_path)]), config()):
        with pytest.raises(ValueError, match="takes the configuration that prepare_data returns"):
            load_datasets(unprepared)


def test_separate_validation_data_is_used_whole(tmp_path: Path) -> None:
    prefixes = [str(make_data(tmp_path / name)) for name in ("a", "b")]
    train, validation = load_datasets(
        prepare_data(config(data_prefixes=prefixes[:1], validation_data_prefixes=prefixes[1:]))
    )
    assert validation is not None
    assert train.names == (prefixes[0],)
    assert validation.names == (prefixes[1],)
    assert len(validation) == len(train) + 1  # its last sequence is kept, and padded


def test_a_data_set_that_is_named_twice_is_two(tmp_path: Path) -> None:
    prefix = str(make_data(tmp_path / "a"))
    once, _ = load_datasets(prepare_data(config(data_prefixes=[prefix])))
    train, validation = load_datasets(
        prepare_data(config(data_prefixes=[prefix, prefix], validation_data_prefixes=[prefix, prefix]))
    )
    assert validation is not None
    assert train.names == validation.names == (prefix, f"{prefix} (2)")
    assert len(train) == 2 * len(once)
    assert train.epochs(len(train)) == {prefix: 1.0, f"{prefix} (2)": 1.0}


def test_a_validation_fraction_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path / "a", documents=2)
    with pytest.raises(DataError, match=r"in the validation part; .*data\.validation_fraction"):
        load_datasets(prepare_data(config(data_prefixes=[str(data)], validation_fraction=0.01)))


def test_the_tokenizer_is_read_once_for_any_number_of_data_sets(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = [str(make_data(tmp_path / str(number), tokenizer=tokenizer)) for number in range(4)]
    architecture = {"vocab_size": None, "vocab_file": str(tokenizer)}
    prepared = prepare_data(config(architecture, data_prefixes=prefixes, validation_data_prefixes=prefixes))
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return tokenizer_digest(path)

    monkeypatch.setattr(source, "tokenizer_digest", counted)
    load_datasets(prepared)
    assert len(read) == 1


def test_megatron_data_is_read(tmp_path: Path) -> None:
    documents = [[1, 2, 3, 0], [4, 5, 6, 7, 8, 0]]
    tokens = np.array([token for document in documents for token in document], "<u2")
    (tmp_path / "a.bin").write_bytes(tokens.tobytes())
    header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x08" + np.array([2, 3], "<u8").tobytes()
    sizes, pointers, borders = np.array([4, 6], "<i4"), np.array([0, 8], "<i8"), np.array([0, 1, 2], "<i8")
    (tmp_path / "a.idx").write_bytes(header + sizes.tobytes() + pointers.tobytes() + borders.tobytes())
    train, _ = load_datasets(prepare_data(config(data_prefixes=[str(tmp_path / "a")], legacy_dataset=True)))
    assert [train[index].tokens.tolist() for index in range(len(train))] == [tokens[:9].tolist()]


def test_options_of_the_configuration_reach_the_data_set(tmp_path: Path) -> None:
    data = str(make_data(tmp_path / "a"))
    packed, _ = load_datasets(prepare_data(config(data_prefixes=[data])))
    full, _ = load_datasets(prepare_data(config(data_prefixes=[data], only_full_sequences=True)))
    mixed, _ = load_datasets(
        prepare_data(config(data_prefixes=[data], only_full_sequences=True, allow_incomplete_sequences_every_n=2))
    )
    assert len(full) < len(mixed) < len(packed)
    plain = prepare_data(config({"reset_attention_mask": False, "reset_position_ids": False}, data_prefixes=[data]))
    train, _ = load_datasets(plain)
    inputs = train.collate([train[0]], [0], [True]).inputs
    assert inputs.document_ids is None
    assert inputs.position_ids.tolist() == [list(range(8))]


@pytest.mark.parametrize("option", ["use_mmap", "load_mmap_index_to_memory"])
def test_how_files_are_read_changes_no_sample(tmp_path: Path, option: str) -> None:
    data = str(make_data(tmp_path / "a"))
    mapped, _ = load_datasets(prepare_data(config(data_prefixes=[data])))
    options: dict[str, Any] = {"data_prefixes": [data], option: option != "use_mmap"}
    other, _ = load_datasets(prepare_data(config(**options)))
    received = pickle.loads(pickle.dumps(other))
    assert [sample.tokens.tolist() for sample in map(received.__getitem__, range(len(received)))] == [
        sample.tokens.tolist() for sample in map(mapped.__getitem__, range(len(mapped)))
    ]
    assert received.fingerprint() == mapped.fingerprint()


def test_data_that_does_not_fit_the_model_is_refused_at_open(tmp_path: Path, tokenizer: Path) -> None:
    large = make_data(tmp_path / "large", largest=300)
    with pytest.raises(DataError, match="large contains token 300, but the vocabulary is 0 to 99"):
        load_datasets(prepare_data(config(data_prefixes=[str(large)])))
    train_tokenizer(["other text"], 280).save(tmp_path / "other.json")
    foreign = make_data(tmp_path / "foreign", tokenizer=tmp_path / "other.json")
    with pytest.raises(DataError, match=r"foreign was made with a tokenizer of SHA-256 .*vocab_file"):
        load_datasets(
            prepare_data(config({"vocab_size": None, "vocab_file": str(tokenizer)}, data_prefixes=[str(foreign)]))
        )
    with pytest.raises(DataError, match=r"absent.* does not exist"):
        load_datasets(prepare_data(config(data_prefixes=[str(tmp_path / "absent")])))
    short = make_data(tmp_path / "short", documents=1)
    with pytest.raises(DataError, match="1 document makes no sequence of 500"):
        load_datasets(prepare_data(config({"sequence_length": 500}, data_prefixes=[str(short)])))


def test_an_unprepared_configuration_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes the configuration that prepare_data returns"):
        load_datasets(config(corpus="python_stdlib", corpus_dir=tmp_path))
