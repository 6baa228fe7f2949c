"""The folders that models of either version of the predecessor were published in are imported as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.core import ExitStatus
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import TransformerArchitectureConfig, TransformerInferenceModule
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from tests.cli.test_checkpoint import run, status
from tests.cli.test_import import ARCHITECTURE, TEXT, settings_for
from tests.transformer.small import layout, statuses

UNTIED: dict[str, Any] = {**ARCHITECTURE, "weight_tying": False, "norm_type": "rms", "attention_bias": False}
CLASSES = ("EmbeddingInput", "TransformerLayer", "TransformerLayer", "LayerNormWrapper", "TransformerLMHead")
UNUSED = {"learning_rate": 0.0, "learning_rate_decay_style": "cosine", "learning_rate_decay_iters": 0}

TRAINED_BY: dict[str, dict[str, Any]] = {
    "0.1": {
        "training": {"weight_decay": 0.1, "finetune": False, "use_separate_lr_on_embeddings": False},
        "learning_rate_scheduler": UNUSED,
        "embedding_learning_rate_scheduler": UNUSED,
        "trainer": {"save_dir": "gone", "merge_lora_after_loading_checkpoint": None, "assert_checkpoint_loaded": True},
        "data": {"data_prefixes": ["gone"]},
    },
    "0.1 of a training that is impossible here": {
        "training": {"weight_decay": 0.1, "finetune": True, "finetunable_parameters": ["lora"]},
        "data": {"finetuning_chat_dataset": True, "data_prefixes": ["gone.jsonl"]},
    },
    "0.2": {
        "training_groups": [{"group_name": "all", "learning_rate_scheduler": UNUSED}],
        "logger": {"use_tensorboard": True, "log_dir": None},
    },
    "0.2 of a training that is impossible here": {
        "training": {"loss_function_config": {"loss_type": "contrastive_loss"}},
        "data": {"embedding_dataset": True},
        "of_another_program": {},
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], 270)


def publish(folder: Path, tokenizer: Tokenizer, version: str) -> TransformerInferenceModule:
    """Lay out a model as the predecessor's were published; return it."""
    folder.mkdir()
    architecture = {**UNTIED, "vocab_size": tokenizer.vocab_size}
    model = TransformerInferenceModule(TransformerArchitectureConfig.from_dict(architecture))
    tensors = {tensor.key: tensor.parts[0][1].detach().clone() for tensor in model.module.global_tensors()}
    for layer, layer_class in enumerate(CLASSES):
        prefix = f"layers.{layer}."
        held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        torch.save(held, folder / f"model_state_layer_{layer}_{layer_class}.pt")
    section = "luminous_architecture" if version.startswith("0.1 of") else "transformer_architecture"
    given = {"version": "1", **TRAINED_BY[version], section: {**architecture, "vocab_file": "elsewhere.json"}}
    (folder / "config.yml").write_text(json.dumps(given, indent=4))
    tokenizer.save(folder / "vocab.json")
    return model


def train_on(tmp_path: Path, tokenizer: Tokenizer, sizes: tuple[int, int, int]) -> None:
    data, settings = settings_for(tokenizer, tmp_path)
    settings |= {f"transformer_architecture.{name}": value for name, value in UNTIED.items()}
    settings |= layout(*sizes) if sizes != (1, 1, 1) else {}
    assert statuses(data, tmp_path, settings) == {ExitStatus.DONE}
    assert TransformerInferenceModule.from_checkpoint(tmp_path / "checkpoints").generate(1, input_text="a")


@pytest.mark.parametrize("version", TRAINED_BY)
def test_a_published_model_is_imported_verified_and_generated_from(
    version: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    published = publish(tmp_path / "Published-7B", tokenizer, version)
    result = run("import", tmp_path / "Published-7B", tmp_path / "new")
    assert status(result) == 0
    assert f"wrote {tmp_path / 'new' / 'global_step0'}" in result.output
    assert ("only the model and its tokens are taken" in result.output) == ("impossible" in version)
    assert status(run("verify", tmp_path / "new")) == 0
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "new")
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    assert torch.equal(model.logits(tokens), published.logits(tokens))
    arguments = ("generate", str(tmp_path / "new"), "--prompt", "a text", "--max-tokens", "2")
    generated = CliRunner().invoke(app, arguments)
    assert generated.exit_code == 0
    assert generated.output.startswith("a text")
    stored: Any = find_newest(tmp_path / "new").require().manifest.scalars["config"]
    assert stored["data"]["eod_token_id"] == tokenizer.eos_token_id
    assert ("trainer" in stored) == ("impossible" not in version)


def test_a_published_model_is_trained_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    publish(tmp_path / "Published-7B", tokenizer, "0.1 of a training that is impossible here")
    assert status(run("import", tmp_path / "Published-7B", tmp_path / "new")) == 0
    train_on(tmp_path, tokenizer, (1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("version", TRAINED_BY)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 2)])
def test_a_published_model_of_any_version_is_trained_on_in_any_layout(
    sizes: tuple[int, int, int], version: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    publish(tmp_path / "Published-7B", tokenizer, version)
    assert status(run("import", tmp_path / "Published-7B", tmp_path / "new")) == 0
    train_on(tmp_path, tokenizer, sizes)


def test_a_tokenizer_in_the_folder_comes_before_one_beside_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    publish(tmp_path / "Published-7B", tokenizer, "0.2")
    train_tokenizer(["another"], 260).save(tmp_path / "vocab.json")
    assert status(run("import", tmp_path / "Published-7B", tmp_path / "new")) == 0
    kept = TransformerInferenceModule.from_checkpoint(tmp_path / "new").tokenizer
    assert kept is not None
    assert kept.sha256 == tokenizer.sha256


def test_a_configuration_without_a_model_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    publish(tmp_path / "Published-7B", tokenizer, "0.2")
    (tmp_path / "Published-7B" / "config.yml").write_text("of_another_program: {}")
    result = run("import", tmp_path / "Published-7B", tmp_path / "new")
    assert status(result) == 0
    assert "not generated from, without a configuration" in result.output
