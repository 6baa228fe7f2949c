"""From a configuration to data sets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import ConfigError, DataError
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data import load, source
from scaling.transformer.data.corpus import CorpusLimits, CorpusPaths, build_stdlib_corpus
from scaling.transformer.data.load import load_datasets, prepare_data
from scaling.transformer.data.progress import ProgressCallback
from scaling.transformer.data.tokenizer import Tokenizer, tokenizer_digest, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["some text"], 300).save(path)
    return path


def make_data(prefix: Path, *, documents: int = 40, largest: int = 99, tokenizer: Path | None = None) -> Path:
    random = np.random.default_rng(documents)
    digest = None if tokenizer is None else Tokenizer.from_file(tokenizer).sha256
    with MemoryMapDatasetBuilder(prefix, np.uint16, tokenizer_sha256=digest) as builder:
        for _ in range(documents):
            builder.add(np.append(random.integers(1, largest + 1, size=random.integers(4, 30)), 0))
    return prefix


def config(architecture: dict[str, Any] | None = None, **data: Any) -> TransformerConfig:
    return TransformerConfig.from_dict(
        {
            "transformer_architecture": {"sequence_length": 8, "vocab_size": 100, **(architecture or {})},
            "data": {key: str(value) if isinstance(value, Path) else value for key, value in data.items()},
        }
    )


def test_a_prepared_configuration_names_everything_and_preparing_it_again_changes_nothing(tmp_path: Path) -> None:
    prepared = prepare_data(config(data_prefixes=[str(make_data(tmp_path / "a"))]))
    assert prepared.data.eod_token_id == 0
    assert prepared.transformer_architecture.vocab_size == 100
    assert prepare_data(prepared) == prepared
    assert TransformerConfig.from_str(prepared.to_yaml()) == prepared


def test_vocabulary_and_end_token_come_from_the_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    data = make_data(tmp_path / "a", tokenizer=tokenizer)
    prepared = prepare_data(config({"vocab_size": None, "vocab_file": str(tokenizer)}, data_prefixes=[str(data)]))
    expected = Tokenizer.from_file(tokenizer)
    assert prepared.transformer_architecture.vocab_size == expected.vocab_size
    assert prepared.data.eod_token_id == expected.eos_token_id
    load_datasets(prepared)


@pytest.mark.parametrize(("asked", "vocab_size"), [(300, 300), (None, 8192)])
def test_the_corpus_is_built_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, vocab_size: int
) -> None:
    def small_corpus(directory: Path, limits: CorpusLimits, *, progress: ProgressCallback) -> CorpusPaths:
        assert limits == CorpusLimits(vocab_size=vocab_size)
        return build_stdlib_corpus(directory, CorpusLimits(300, 50_000, 20_000), progress=progress)

    monkeypatch.setattr(load, "build_stdlib_corpus", small_corpus)
    prepared = prepare_data(config({"vocab_size": asked}, corpus="python_stdlib", corpus_dir=tmp_path))
    assert prepared.data.corpus is None
    assert prepared.transformer_architecture.vocab_size == 300
    train, validation = load_datasets(prepared)
    assert len(train) > 100
    assert validation is None
    assert TransformerConfig.from_str(prepared.to_yaml()) == prepared


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


def test_separate_validation_data_is_used_whole(tmp_path: Path) -> None:
    prefixes = [str(make_data(tmp_path / name)) for name in ("a", "b")]
    train, validation = load_datasets(
        prepare_data(config(data_prefixes=prefixes[:1], validation_data_prefixes=prefixes[1:]))
    )
    assert validation is not None
    assert train.names == (prefixes[0],)
    assert validation.names == (prefixes[1],)
    assert len(validation) == len(train) + 1  # its last sequence is kept, and padded


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


def refused(message: str, architecture: dict[str, Any] | None = None, **data: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_data(config(architecture, **data))


def test_what_does_not_fit_together_is_refused_by_name(tmp_path: Path, tokenizer: Path) -> None:
    prefixes = [str(tmp_path / "a")]
    refused(r"data\.data_prefixes: names no data; .* data\.corpus")
    refused(r"vocab_size: is not given", {"vocab_size": None}, data_prefixes=prefixes)
    refused(
        r"vocab_size: \(100\) is less than the 2\d\d tokens", {"vocab_file": str(tokenizer)}, data_prefixes=prefixes
    )
    refused(r"vocab_file: .* remove one", {"vocab_file": str(tokenizer)}, corpus="python_stdlib", corpus_dir=tmp_path)
    refused(
        r"data\.eod_token_id: \(500\) is outside the vocabulary",
        {"vocab_size": None, "vocab_file": str(tokenizer)},
        data_prefixes=prefixes,
        eod_token_id=500,
    )


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
    with pytest.raises(DataError, match="1 documents make no sequence of 500"):
        load_datasets(prepare_data(config({"sequence_length": 500}, data_prefixes=[str(short)])))


def test_an_unprepared_configuration_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes the configuration that prepare_data returns"):
        load_datasets(config(corpus="python_stdlib", corpus_dir=tmp_path))
