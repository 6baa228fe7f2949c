"""`scaling hf import --base` and `scaling hf export --adapter`: from a folder to a checkpoint and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from scaling.cli.main import app
from scaling.core import (
    BaseReference,
    Checkpointer,
    CheckpointError,
    LazyTensor,
    StoredCheckpoint,
    save_pieces,
    whole,
)
from scaling.core.checkpoint.search import find_newest
from scaling.transformer.hf.importer import import_model
from scaling.transformer.hf.peft.exporter import export_adapter
from scaling.transformer.hf.peft.importer import import_adapter
from scaling.transformer.inference.module import TransformerInferenceModule
from scaling.transformer.stored_model import architecture_of
from tests.transformer.hf.by_hand import HIDDEN, VOCABULARY, same_bits, weights, write_model
from tests.transformer.hf.peft.by_hand import CONFIG, write


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["hf", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_adapter_goes_through_a_checkpoint_and_comes_back(tmp_path: Path) -> None:
    import_model(write_model(tmp_path / "model"), tmp_path / "base")
    adapter = write(tmp_path / "adapter")
    said = run("import", adapter, tmp_path / "ours", "--base", tmp_path / "base")
    assert "global_step0, an adapter (LORA) on" in said.replace("\n", "")
    stored = find_newest(tmp_path / "ours").require()
    base = find_newest(tmp_path / "base").require()
    assert BaseReference.of(stored.manifest.scalars) == BaseReference.to(base)
    architecture, _ = architecture_of(stored)
    assert architecture.lora_config is not None
    assert architecture.lora_config.parallel_modules == ["query", "value"]
    assert "layers.1.self_attention.query.lora_lora.a" in stored.manifest.tensors
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    assert model.load_adapter(tmp_path / "ours") == "lora"
    ids = torch.arange(8)[None]
    assert not torch.equal(model.logits(ids, adapter="lora"), model.logits(ids))
    assert "an adapter of PEFT (LORA)" in run("export", tmp_path / "ours", tmp_path / "again", "--adapter")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "again"))
    assert same_bits(before, after)
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {name: config[name] for name in CONFIG} == CONFIG
    run("export", tmp_path / "ours", tmp_path / "half", "--adapter", "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "half" / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_a_base_is_only_needed_for_what_an_adapter_lacks(tmp_path: Path) -> None:
    """Token rows of an untied head that was not trained are the base's; so they are looked at in it."""
    import_model(write_model(tmp_path / "model"), tmp_path / "base")
    base = find_newest(tmp_path / "base").require()
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 16)}
    (tmp_path / "plain_ours").mkdir()  # what is there and empty is taken
    folders = write(tmp_path / "plain"), write(tmp_path / "rows", {"trainable_token_indices": [1, 4]}, rows)
    plain, with_rows = (
        find_newest(import_adapter(folder, tmp_path / f"{folder.name}_ours", base).checkpoint).require()
        for folder in folders
    )
    (tmp_path / "base").rename(tmp_path / "moved")
    export_adapter(plain, tmp_path / "plain_again")
    with pytest.raises(CheckpointError, match=r"was trained on the base .*which was not found"):
        export_adapter(with_rows, tmp_path / "rows_again")
    import_model(write_model(tmp_path / "other_model", weights(seed=1)), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"was not found(.|\n)*digest of its weights is"):
        export_adapter(with_rows, tmp_path / "rows_again", base=tmp_path / "other")
    assert not (tmp_path / "rows_again").exists()
    export_adapter(with_rows, tmp_path / "rows_again", base=tmp_path / "moved")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folders[1], tmp_path / "rows_again"))
    assert same_bits(before, after)


def test_an_adapter_that_was_trained_in_part_or_has_new_tokens(tmp_path: Path) -> None:
    """What was not trained is not saved; new tokens have to be made in the model that peft is given."""
    import_model(write_model(tmp_path / "model"), tmp_path / "base")
    base = find_newest(tmp_path / "base").require()
    section = {"vocab_size": VOCABULARY + 4, "finetunable_token_ids": [3, VOCABULARY + 3]}
    rows = {f"layers.{layer}.token_rows.weight": torch.ones(2, HIDDEN) for layer in ("0.embedding", "4.linear")}
    done = export_adapter(adapter_of(base, tmp_path / "rows", section, rows), tmp_path / "rows_theirs")
    [remark] = done.remarks
    assert remark.startswith("the base has 271 tokens, the adapter 275: call model.resize_token_embeddings(275) before")
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")
    rows.popitem()
    with pytest.raises(
        CheckpointError, match=r"does not hold layers\.4\.linear\.token_rows\.weight, which no training"
    ):
        export_adapter(adapter_of(base, tmp_path / "part", section, rows), tmp_path / "part_theirs")


def adapter_of(
    base: StoredCheckpoint, folder: Path, section: dict[str, Any], tensors: dict[str, Tensor]
) -> StoredCheckpoint:
    """Save an adapter checkpoint."""
    _, settings = architecture_of(base)
    config = {**settings, "transformer_architecture": {**settings["transformer_architecture"], **section}}
    scalars: dict[str, Any] = {"config": config, "base": BaseReference.to(base).as_dict()}
    lazy = [LazyTensor(key, tuple(t.shape), t.dtype, [(whole(t.shape), t.clone)]) for key, t in tensors.items()]
    save_pieces(folder, 0, lazy, scalars=scalars, information={})
    return find_newest(folder).require()


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    import_model(write_model(tmp_path / "model"), tmp_path / "base")
    stored = Checkpointer(None).find(tmp_path / "base").require()
    with pytest.raises(
        CheckpointError, match="holds a whole model, not what was trained on one; name the checkpoint of a fine"
    ):
        export_adapter(stored, tmp_path / "adapter")
