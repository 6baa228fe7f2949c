"""Checkpoints of the first format version, of which one is kept, and how fused weights are stored since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from scaling.core import Checkpointer, ParallelModule, Topology, read_manifest
from scaling.transformer import TransformerConfig, layer_specs
from tests.transformer.small import Settings, build_corpus, layout, nested, settings_of, train_small, values

KEPT = Path(__file__).parent / "checkpoint_version_1"
"""Five steps with ZeRO in 2 (data) x 2 (model), query, key and value fused; and the losses of ten steps."""

MODEL: Settings = {
    "transformer_architecture.hidden_size": 16,
    "transformer_architecture.num_layers": 2,
    "transformer_architecture.attention_num_kv_heads": None,
    "transformer_architecture.mlp_type": "default",
    "transformer_architecture.norm_type": "layernorm",
}
SEPARATE: Settings = {**MODEL, "transformer_architecture.attention_qkv_in_one": False}
HALF: Settings = {"trainer.train_iterations": 5}


def saving(folder: Path) -> Settings:
    return {"trainer.save_dir": str(folder), "trainer.save_interval": 5}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "training")


@pytest.mark.parametrize("model", [MODEL, SEPARATE], ids=["fused", "separate"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 2)], ids=str)
def test_a_run_goes_on_from_a_checkpoint_of_the_first_version(
    corpus: Path, tmp_path: Path, model: Settings, sizes: tuple[int, int, int]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(KEPT / "global_step5", folder / "global_step5")
    assert read_manifest(folder / "global_step5").tensors.keys() >= {"layers.1.self_attention.query_key_value.weight"}
    zero = {"optimizer.zero": sizes[0] > 1}
    continued = values(train_small(corpus, tmp_path / "run", model, saving(folder), layout(*sizes), zero))
    assert continued == pytest.approx(json.loads((KEPT / "losses.json").read_text())[5:], rel=1e-5)
    stored = read_manifest(folder / "global_step10").tensors.keys()
    assert {f"optimizer.exp_avg.layers.2.self_attention.{name}.bias" for name in ("query", "key", "value")} <= stored
    assert not [name for name in stored if "query_key_value" in name]


@pytest.mark.parametrize(("first", "then"), [(MODEL, SEPARATE), (SEPARATE, MODEL)], ids=["fused first", "fused then"])
def test_a_checkpoint_does_not_know_whether_weights_were_fused(
    corpus: Path, tmp_path: Path, first: Settings, then: Settings
) -> None:
    folder = tmp_path / "checkpoints"
    uninterrupted = values(train_small(corpus, tmp_path / "alone", first))
    train_small(corpus, tmp_path / "run", first, HALF, saving(folder), layout(1, 1, 2))
    assert values(train_small(corpus, tmp_path / "run", then, saving(folder))) == pytest.approx(uninterrupted, rel=1e-5)


def model_of(corpus: Path, settings: Settings) -> ParallelModule:
    config = TransformerConfig.from_dict(nested(settings_of(corpus, Path("unused"), settings)), quiet=True)
    topology = Topology.single()
    specs = layer_specs(config.transformer_architecture, topology, seed=1)
    return ParallelModule(specs, topology, config.topology, seed=1)


def test_fused_and_separate_weights_load_each_others_checkpoints_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    for number, (own, other) in enumerate([(MODEL, SEPARATE), (SEPARATE, MODEL)]):
        source, target = model_of(corpus, own), model_of(corpus, other)
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.normal_()
        saver = Checkpointer(tmp_path / str(number))
        path = saver.save(1, source.global_tensors(), {})
        assert path is not None
        saver.load(path, target.global_tensors())
        tensors = {tensor.key: tensor for tensor in target.global_tensors()}
        for tensor in source.global_tensors():
            (_, written), (_, read) = *tensor.parts, *tensors[tensor.key].parts
            assert torch.equal(written, read)
