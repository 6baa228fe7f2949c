"""The configuration that an import leaves trains the model as it is, once data are named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from scaling.core import RunIdentity
from scaling.core.checkpoint.search import find_newest
from scaling.core.trainer.differences import compare_settings
from scaling.transformer.config.environment import TransformerConfigHere
from scaling.transformer.hf.importer import import_model
from tests.transformer.hf.by_hand import END, VOCABULARY, write_model


def test_the_configuration_trains_as_it_stands_once_data_are_named(tmp_path: Path) -> None:
    done = import_model(write_model(tmp_path / "m"), tmp_path / "c")
    assert done.config_file == tmp_path / "c" / "config.yml"
    config = TransformerConfigHere.from_yaml(done.config_file)
    assert config.data.eod_token_id == END
    assert config.transformer_architecture.vocab_size == VOCABULARY
    assert config.transformer_architecture.vocab_file == tmp_path / "c" / "vocab.json"
    assert config.trainer.load_dir == tmp_path / "c"
    text = done.config_file.read_text()
    assert "--tokenizer" in text
    section = yaml.safe_load(text)["transformer_architecture"]
    assert section.keys() < config.transformer_architecture.as_dict().keys()


def test_a_training_from_an_import_names_what_is_not_as_in_the_model_and_no_more(tmp_path: Path) -> None:
    done = import_model(write_model(tmp_path / "m"), tmp_path / "c")
    sections = yaml.safe_load(done.config_file.read_text())
    sections["transformer_architecture"] |= {"sequence_length": 24, "dropout_after_mlp": 0.1}
    stored: Any = find_newest(tmp_path / "c").require().manifest.scalars["config"]
    digests = {**stored["fingerprints"], "data": "a digest"}
    identity = RunIdentity(TransformerConfigHere.from_dict(sections, quiet=True), digests)
    said: list[str] = []

    def log_once(level: int, text: str, *values: object) -> None:
        if level == logging.WARNING:
            said.append(text % values)

    compare_settings(stored, identity, (), continues=False, log_once=log_once)
    assert said == [
        "resuming with another setting: transformer_architecture.dropout_after_mlp: 0.0 in the checkpoint, 0.1 now",
        "resuming with another setting: transformer_architecture.sequence_length: 32 in the checkpoint, 24 now",
    ]
