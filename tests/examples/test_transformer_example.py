"""The README's first command: its configuration, and what it says; tests/commands runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.transformer.config.notes import notes
from scaling.transformer.config.root import TransformerConfig
from tests.transformer.small import build_corpus, run_module, settings_of, write_config

CONFIG = Path("examples/transformer_example/config.yml")
RUN = "examples.transformer_example.run"


def test_the_configuration_is_valid_and_falls_into_place() -> None:
    config = TransformerConfig.from_yaml(CONFIG)
    assert config.topology.world_size == 1
    assert config.trainer.save_dir is not None
    assert config.trainer.train_iterations is not None
    assert [group.group_name for group in config.training_groups] == ["matrices", "norms"]
    assert list(notes(config)) == []
    for overrides in (
        ["topology.data_parallel_size=2", "topology.model_parallel_size=2"],
        ["topology.pipe_parallel_size=2"],
    ):
        assert TransformerConfig.from_yaml(CONFIG, overrides).topology.global_batch_size == 8


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_configuration_it_says_how_to_name_one(arguments: list[str]) -> None:
    ended = run_module(RUN, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: name a configuration: python3 -m examples.transformer_example.run CONFIG")


@pytest.mark.slow
def test_a_training_without_a_tokenizer_ends_well_and_says_how_to_generate(tmp_path: Path) -> None:
    corpus, save_dir = build_corpus(tmp_path / "corpus"), tmp_path / "checkpoints"
    settings = settings_of(corpus, tmp_path / "log", {"trainer.train_iterations": 1, "trainer.save_dir": str(save_dir)})
    ended = run_module(RUN, write_config(tmp_path / "config.yml", settings))
    assert ended.returncode == 0, ended.stderr
    assert "trained without a tokenizer" in ended.stdout
    assert f"copy the tokenizer of the token data to {save_dir}/vocab.json" in ended.stdout
    assert f"scaling generate {save_dir} --prompt" in ended.stdout
