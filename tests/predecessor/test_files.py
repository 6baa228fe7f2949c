"""Files written for either version of the predecessor load, and are trained on, as they stand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from examples.mlp_example.config import MLPConfig
from examples.mlp_example.train import train as train_digits
from scaling.core import BaseConfig, ExitStatus, LaunchContext
from scaling.core.config.config_file import read_config
from scaling.core.config.explain import sections_of
from scaling.core.config.fields import ConfigWarning, NoEffect, Unavailable, marker
from scaling.core.config.yaml_text import parse_yaml
from scaling.core.logging.setup import close_logging
from scaling.transformer.config.notes import notes
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.train import train
from tests.distributed import run_distributed
from tests.transformer.small import VOCABULARY, build_corpus, metrics

FOLDER = Path(__file__).parent
VERSIONS = ("0.1", "0.2")
TINY = ("trainer.train_iterations=2", "topology.device=cpu", "logger.use_tensorboard=false")


def load(section: type[BaseConfig], name: str) -> tuple[Any, list[str]]:
    """Load a file as it stands; return the settings that its loading notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConfigWarning)
        config = section.from_yaml(FOLDER / name)
    return config, [str(warning.message).partition(":")[0] for warning in caught]


@pytest.mark.parametrize(("version", "noted"), [("0.1", ["training_groups"]), ("0.2", [])])
def test_a_file_of_a_language_model_loads_and_comes_back(version: str, noted: list[str]) -> None:
    config, said = load(TransformerConfig, f"transformer_{version}.yml")
    assert said == noted
    assert TransformerConfig.from_str(config.to_yaml()) == config
    (group,) = config.training_groups
    assert (group.weight_decay, group.learning_rate_scheduler.learning_rate) == (1e-4, 1e-4)
    softmax = "transformer_architecture.masked_softmax.softmax_in_fp32"
    idle = f"training_groups ({group.group_name}): learning_rate_decay_iters"  # it trained on after its decay
    assert [note.path for note in notes(config)] == [idle, *(["logger.use_tensorboard"] if noted else []), softmax]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_the_classifier_loads_and_comes_back(version: str) -> None:
    config, said = load(MLPConfig, f"mlp_{version}.yml")
    assert said == []
    assert MLPConfig.from_str(config.to_yaml()) == config
    assert [note.path for note in config.all_notes()] == ["trainer.save_interval"]


def paths(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{path}" for path in paths(value))


def former_paths(section: type[BaseConfig]) -> Iterator[str]:
    """Yield the settings that are there for the predecessor's files only."""
    for name, field in section.model_fields.items():
        if marker(field, NoEffect) or marker(field, Unavailable):
            yield name
            continue
        for inner in sections_of(field.annotation):
            assert issubclass(inner, BaseConfig)
            yield from (f"{name}.{path}" for path in former_paths(inner))


def test_the_files_name_every_setting_that_only_the_predecessor_had() -> None:
    values, _ = parse_yaml(read_config(FOLDER / "transformer_0.2.yml"), source=None)
    elsewhere = ("data.validation_blended", "transformer_architecture.fp8_config")  # null in that file
    shared = {path for path in former_paths(TransformerConfig) if not path.startswith(elsewhere)}
    assert shared <= {*paths(values)}


def train_model(rank: int, world_size: int, version: str, overrides: tuple[str, ...]) -> ExitStatus:
    try:
        return train(
            TransformerConfig.from_yaml(FOLDER / f"transformer_{version}.yml", overrides, quiet=True),
            LaunchContext.from_environment(),
        )
    finally:
        close_logging()


def train_classifier(rank: int, world_size: int, version: str, overrides: tuple[str, ...]) -> ExitStatus:
    try:
        return train_digits(
            MLPConfig.from_yaml(FOLDER / f"mlp_{version}.yml", overrides), LaunchContext.from_environment()
        )
    finally:
        close_logging()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_language_model_is_trained_as_the_file_says(version: str, tmp_path: Path) -> None:
    overrides = (
        *TINY,
        f"data.data_prefixes=[{build_corpus(tmp_path / 'data')}]",
        f"transformer_architecture.vocab_size={VOCABULARY}",
        "transformer_architecture.hidden_size=32",
        f"trainer.save_dir={tmp_path / 'checkpoints'}",
        f"logger.log_dir={tmp_path}",
    )
    assert run_distributed(train_model, 1, version, overrides) == [ExitStatus.DONE]
    assert len(metrics(tmp_path)) == 2
    kept = TransformerConfig.from_yaml(tmp_path / "config.yml")
    assert [group.weight_decay for group in kept.training_groups] == [1e-4]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_classifier_is_trained_as_the_file_says(version: str, tmp_path: Path) -> None:
    overrides = (*TINY, "topology.micro_batch_size=16", "trainer.eval_interval=null", f"logger.log_dir={tmp_path}")
    assert run_distributed(train_classifier, 1, version, overrides) == [ExitStatus.DONE]
    assert len(metrics(tmp_path)) == 2
