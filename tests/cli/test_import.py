"""`scaling checkpoint import` makes a checkpoint of the predecessor one that can be trained on and generated from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.core import ConfigError, ExitStatus, MemoryMapDatasetBuilder
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import TransformerArchitectureConfig, TransformerInferenceModule
from scaling.transformer.data.tokenizer import Tokenizer, tokenizer_digest, train_tokenizer
from tests.cli.test_checkpoint import run, status
from tests.transformer.small import statuses

TEXT = "a text to learn the tokens of, and to be continued"
ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "sequence_length": 8,
}
"""The predecessor's: the vocabulary comes with the fixtures."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One whose end of a document is not token 0, as in the tokenizers of Llama."""
    trained = json.loads(train_tokenizer([TEXT], 270).to_str())
    vocabulary = trained["model"]["vocab"]
    first = next(token for token, number in vocabulary.items() if number == 0)
    second = next(token for token, number in vocabulary.items() if number == 1)
    vocabulary[first], vocabulary[second] = 1, 0
    for token in trained["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    changed = Tokenizer.from_str(json.dumps(trained))
    assert changed.eos_token_id == 1
    return changed


@pytest.fixture
def old(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A step folder of the predecessor, with its configuration and, beside it, its tokenizer."""
    folder = tmp_path / "old" / "global_step7"
    folder.mkdir(parents=True)
    architecture = {**ARCHITECTURE, "vocab_size": tokenizer.vocab_size}
    model = TransformerInferenceModule(TransformerArchitectureConfig.from_dict(architecture))
    tensors = {tensor.key: tensor.parts[0][1].detach().clone() for tensor in model.module.global_tensors()}
    for layer in range(4):
        prefix = f"layers.{layer}."
        held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        torch.save(held, folder / f"model_state_layer_{layer}_TransformerLayer.pt")
    head = {"embedding.weight": tensors["layers.0.embedding.weight"]}
    torch.save(head, folder / "model_state_layer_4_TransformerLMHeadTied.pt")
    given = {"transformer_architecture": {**architecture, "vocab_file": "elsewhere.json"}, "data": {"use_mmap": True}}
    (folder / "config.yml").write_text(json.dumps(given))
    (folder.parent / "latest").write_text(folder.name)
    tokenizer.save(folder.parent / "vocab.json")
    return folder


def settings_for(tokenizer: Tokenizer, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Tokenize a few documents; return them, with the settings of a training on them that starts from weights only."""
    tokenizer.save(folder / "tokenizer.json")
    with MemoryMapDatasetBuilder(folder / "data", np.int32, tokenizer_sha256=tokenizer.sha256) as builder:
        for _ in range(20):
            builder.add([*tokenizer.encode(TEXT), tokenizer.eos_token_id])
    names = ("attention_num_kv_heads", "mlp_type", "mlp_factor", "norm_type", "vocab_size")
    return folder / "data", {
        **{f"transformer_architecture.{name}": value for name, value in ARCHITECTURE.items()},
        **{f"transformer_architecture.{name}": None for name in names},
        "transformer_architecture.vocab_file": str(folder / "tokenizer.json"),
        "trainer.load_dir": str(folder / "new"),
        "trainer.save_dir": str(folder / "checkpoints"),
        "trainer.load_optimizer_states": False,
        "trainer.load_context": False,
        "trainer.assert_checkpoint_loaded": True,
        "trainer.train_iterations": 2,
    }


@pytest.mark.parametrize(
    "absent", [(), ("vocab.json",), ("global_step7/config.yml",), ("vocab.json", "global_step7/config.yml")]
)
def test_an_imported_checkpoint_is_trained_on(
    old: Path, tokenizer: Tokenizer, tmp_path: Path, absent: tuple[str, ...]
) -> None:
    for name in absent:
        (old.parent / name).unlink()
    assert status(run("import", old.parent, tmp_path / "new")) == 0
    data, settings = settings_for(tokenizer, tmp_path)
    assert statuses(data, tmp_path, settings) == {ExitStatus.DONE}
    trained = find_newest(tmp_path / "checkpoints").require().manifest
    stored: Any = trained.scalars["config"]
    assert stored["data"]["eod_token_id"] == tokenizer.eos_token_id
    assert TransformerInferenceModule.from_checkpoint(tmp_path / "checkpoints").tokenizer is not None
    assert trained.tensors.keys() >= find_newest(tmp_path / "new").require().manifest.tensors.keys()


def test_an_imported_checkpoint_remembers_its_tokenizer(old: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert status(run("import", old, tmp_path / "new")) == 0
    stored: Any = find_newest(tmp_path / "new").require().manifest.scalars["config"]
    assert stored["fingerprints"] == {"tokenizer": tokenizer.sha256}
    other = train_tokenizer(["another text"], tokenizer.vocab_size)
    data, settings = settings_for(other, tmp_path)
    with pytest.raises(ConfigError, match=r"fingerprints\.tokenizer: the tokenizer is not what"):
        statuses(data, tmp_path, settings)


def test_a_tokenizer_without_an_end_of_documents_is_imported_with_a_remark(old: Path, tmp_path: Path) -> None:
    vocab_file = old.parent / "vocab.json"
    vocab_file.write_text(vocab_file.read_text().replace("<|endoftext|>", "<done>"))
    result = run("import", old, tmp_path / "new")
    assert status(result) == 0
    assert f"{vocab_file} does not say how documents end" in result.output
    stored: Any = find_newest(tmp_path / "new").require().manifest.scalars["config"]
    assert "eod_token_id" not in stored["data"]
    assert stored["fingerprints"] == {"tokenizer": tokenizer_digest(vocab_file)}


@pytest.mark.parametrize("says", [False, True])
def test_a_size_of_the_vocabulary_that_nobody_tells_is_not_made_up(says: bool, old: Path, tmp_path: Path) -> None:
    (old.parent / "vocab.json").unlink()
    given = json.loads((old / "config.yml").read_text())
    size = given["transformer_architecture"]["vocab_size"]
    if not says:
        del given["transformer_architecture"]["vocab_size"]
    (old / "config.yml").write_text(json.dumps(given))
    assert status(run("import", old, tmp_path / "new")) == 0
    stored: Any = find_newest(tmp_path / "new").require().manifest.scalars["config"]
    assert stored["transformer_architecture"].get("vocab_size", "unsaid") == (size if says else "unsaid")


@pytest.mark.parametrize(
    ("configured", "missing", "message"),
    [
        (True, (2,), r"incomplete \(its configuration describes layers 0 to 3\): there is no model_state_layer_2_"),
        (True, (3, 4), r"there is no model_state_layer_3_\*.pt; copy the missing files"),
        (False, (0, 2), r"incomplete: there is no model_state_layer_0_\*.pt, model_state_layer_2_\*.pt; copy"),
    ],
)
def test_a_missing_layer_is_named(
    old: Path, tmp_path: Path, configured: bool, missing: tuple[int, ...], message: str
) -> None:
    for layer in missing:
        next(old.glob(f"model_state_layer_{layer}_*")).unlink()
    if not configured:
        (old / "config.yml").unlink()
    result = run("import", old, tmp_path / "new")
    assert status(result) == ExitStatus.USER_INPUT
    assert re.search(message, str(result.exception))
    assert not find_newest(tmp_path / "new").found


def test_a_tied_head_may_be_missing(old: Path, tmp_path: Path) -> None:
    next(old.glob("model_state_layer_4_*")).unlink()
    assert status(run("import", old, tmp_path / "new")) == 0
    TransformerInferenceModule.from_checkpoint(tmp_path / "new")


def test_what_was_not_imported_is_not_said_to_be_good_for_training(old: Path, tmp_path: Path) -> None:
    shutil.rmtree(old)
    old.mkdir()
    result = run("import", old, tmp_path / "new")
    assert status(result) == ExitStatus.USER_INPUT
    assert "can be trained on" not in result.output
