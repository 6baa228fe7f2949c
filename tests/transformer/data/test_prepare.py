"""What a configuration leaves open is filled in before the processes start, and contradictions are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data import prepare
from scaling.transformer.data.corpus import CorpusLimits, CorpusPaths, build_stdlib_corpus
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.progress import ProgressCallback
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from tests.transformer.data.small_data import config, make_data


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["some text"], 300).save(path)
    return path


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


def test_the_end_token_is_the_one_that_the_data_record(tmp_path: Path, tokenizer: Path) -> None:
    seven, eight, none = (
        str(make_data(tmp_path / name, tokenizer=tokenizer, end=end)) for name, end in (("a", 7), ("b", 8), ("c", None))
    )
    for architecture in ({}, {"vocab_size": None, "vocab_file": str(tokenizer)}):
        prepared = prepare_data(config(architecture, data_prefixes=[none], validation_data_prefixes=[seven]))
        assert prepared.data.eod_token_id == 7
        assert prepare_data(prepared) == prepared
    end_differently = rf"eod_token_id: is not given.*those of {seven} with 7 and those of {eight} with 8"
    refused(end_differently, data_prefixes=[seven, eight])
    refused(rf"is 9, but the documents of {seven} end with 7; remove it", data_prefixes=[seven, none], eod_token_id=9)
    assert prepare_data(config(data_prefixes=[seven, eight], eod_token_id=8)).data.eod_token_id == 8
    assert prepare_data(config(data_prefixes=[none], eod_token_id=9)).data.eod_token_id == 9


@pytest.mark.parametrize(("asked", "vocab_size"), [(300, 300), (None, 8192)])
def test_the_corpus_is_built_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, vocab_size: int
) -> None:
    def small_corpus(directory: Path, limits: CorpusLimits, *, progress: ProgressCallback) -> CorpusPaths:
        assert limits == CorpusLimits(vocab_size=vocab_size)
        return build_stdlib_corpus(directory, CorpusLimits(300, 50_000, 20_000), progress=progress)

    monkeypatch.setattr(prepare, "build_stdlib_corpus", small_corpus)
    prepared = prepare_data(config({"vocab_size": asked}, corpus="python_stdlib", corpus_dir=tmp_path))
    assert prepared.data.corpus is None
    assert prepared.transformer_architecture.vocab_size == 300
    train, validation = load_datasets(prepared)
    assert len(train) > 100
    assert validation is None
    assert TransformerConfig.from_str(prepared.to_yaml()) == prepared


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
