"""Checkpoints of the predecessor become checkpoints of this library, and nothing in them is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core.boxes import GlobalTensor, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.predecessor_import import import_predecessor, read_predecessor
from scaling.core.errors import CheckpointError, StorageError
from tests.core.checkpoint.test_verify import Bomb

EMBEDDING = torch.randn(16, 4)
LAYERS: dict[str, dict[str, Tensor]] = {
    "model_state_layer_0_EmbeddingInput.pt": {"embedding.weight": EMBEDDING},
    "model_state_layer_1_TransformerLayer.pt": {"mlp.dense_in.weight": torch.randn(8, 4).bfloat16()},
    "model_state_layer_1_TransformerLayer_bias.pt": {"mlp.dense_in.bias_x": torch.randn(8)},
    "model_state_layer_2_LayerNormWrapper.pt": {"norm.weight": torch.ones(4)},
    "model_state_layer_3_TransformerLMHeadTied.pt": {"embedding.weight": EMBEDDING.clone()},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    step = tmp_path / "old" / "global_step30"
    step.mkdir(parents=True)
    for name, content in LAYERS.items():
        torch.save(content, step / name)
    (step / "config.yml").write_text("{}")
    torch.save(object, step / "context_global_rank_0.pt")
    (step.parent / "latest").write_text("global_step30")
    return step


def without_biases(layer: int, layer_class: str, name: str) -> str | None:
    if name == "embedding.weight":
        return "embedding_tying.weight"
    return None if "bias" in name else f"layers.{layer}.{name}"


def test_tensors_are_named_by_layer_index_and_a_tied_head_is_the_embedding(folder: Path) -> None:
    found = read_predecessor(folder)
    assert sorted(found) == [
        "layers.0.embedding.weight",
        "layers.1.mlp.dense_in.bias_x",
        "layers.1.mlp.dense_in.weight",
        "layers.2.norm.weight",
    ]
    assert torch.equal(
        found["layers.1.mlp.dense_in.weight"], LAYERS["model_state_layer_1_TransformerLayer.pt"]["mlp.dense_in.weight"]
    )


def test_a_mapping_joins_equal_tensors_and_leaves_others_out(folder: Path) -> None:
    found = read_predecessor(folder.parent, rename=without_biases)
    assert sorted(found) == ["embedding_tying.weight", "layers.1.mlp.dense_in.weight", "layers.2.norm.weight"]
    torch.save({"embedding.weight": EMBEDDING + 1}, folder / "model_state_layer_3_TransformerLMHeadTied.pt")
    with pytest.raises(CheckpointError, match=r"both named embedding_tying\.weight, but differ"):
        read_predecessor(folder, rename=without_biases)


def test_the_import_is_a_checkpoint_like_any_other(folder: Path, tmp_path: Path) -> None:
    path = import_predecessor(folder.parent, tmp_path / "new", rename=without_biases)
    assert path == tmp_path / "new" / "global_step30"
    weight = torch.zeros(16, 4)
    Checkpointer(None).load(
        path,
        [GlobalTensor("embedding_tying.weight", (16, 4), [(whole((16, 4)), weight)])],
        allowed_unexpected=["layers"],
    )
    assert torch.equal(weight, EMBEDDING)
    with pytest.raises(CheckpointError, match="exists already"):
        import_predecessor(folder, tmp_path / "new")


def test_the_format_before_zip_archives_is_read_too(folder: Path) -> None:
    name = "model_state_layer_2_LayerNormWrapper.pt"
    torch.save(LAYERS[name], folder / name, _use_new_zipfile_serialization=False)
    assert torch.equal(read_predecessor(folder)["layers.2.norm.weight"], torch.ones(4))


@pytest.mark.parametrize("content", [{"w": torch.ones(1), "x": 3}, [torch.ones(1)], {3: torch.ones(1)}])
def test_a_file_that_is_not_a_table_of_tensors_is_refused(folder: Path, content: Any) -> None:
    torch.save(content, folder / "model_state_layer_2_LayerNormWrapper.pt")
    with pytest.raises(CheckpointError, match="is not a table of named tensors"):
        read_predecessor(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bomb_is_refused_and_not_executed(folder: Path, zipped: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = {"w": Bomb(canary)}
    path = folder / "model_state_layer_2_LayerNormWrapper.pt"
    if zipped:
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError, match=r"something else than tensors, .* source that you trust$") as caught:
        read_predecessor(folder)
    assert "weights_only" not in str(caught.value), "torch recommends to execute it"
    assert not canary.exists()


@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_file_is_refused(folder: Path, size: int) -> None:
    os.truncate(folder / "model_state_layer_0_EmbeddingInput.pt", size)
    message = r"model_state_layer_0_EmbeddingInput\.pt is damaged, cut off or no file of torch; copy it again"
    with pytest.raises(CheckpointError, match=message):
        read_predecessor(folder)


def test_a_text_in_place_of_a_layer_is_refused(folder: Path) -> None:
    (folder / "model_state_layer_0_EmbeddingInput.pt").write_text("hello there\n")
    with pytest.raises(CheckpointError, match="no file of torch"):
        read_predecessor(folder)


def test_a_layer_that_cannot_be_read_is_a_storage_error(folder: Path) -> None:
    path = folder / "model_state_layer_2_LayerNormWrapper.pt"
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"model_state_layer_2_LayerNormWrapper\.pt cannot be read"):
        read_predecessor(folder)


@pytest.mark.parametrize(
    ("missing", "num_layers", "message"),
    [
        (["model_state_layer_1_TransformerLayer.pt", "model_state_layer_1_TransformerLayer_bias.pt"], None, "layer_1_"),
        ([], 5, r"describes layers 0 to 4\): there is no model_state_layer_4_\*\.pt; copy"),
        ([], 12, r"there is no model_state_layer_4_\*\.pt, .*, model_state_layer_8_\*\.pt and 3 more; copy"),
    ],
)
def test_missing_layers_are_named(folder: Path, missing: list[str], num_layers: int | None, message: str) -> None:
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        read_predecessor(folder, num_layers=num_layers)


@pytest.mark.parametrize("text", ["../../etc", "global_step1/../..", "", "global_step1\nrm"])
def test_a_hint_that_leads_out_of_the_folder_is_refused(folder: Path, text: str) -> None:
    (folder.parent / "latest").write_text(text)
    with pytest.raises(CheckpointError, match="should name a folder"):
        read_predecessor(folder.parent)


def test_a_folder_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint of the predecessor"):
        read_predecessor(tmp_path)
    with pytest.raises(CheckpointError, match="is not a checkpoint of the predecessor"):
        import_predecessor(tmp_path, tmp_path / "new")
