"""An import writes the model bit by bit as its checkpoint, what belongs to it beside, or nothing at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from scaling.core import CheckpointError, ConfigError, ScalingError, StorageError
from scaling.core.checkpoint.reader import CheckpointReader
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import TransformerInferenceModule
from scaling.transformer.config.environment import TransformerConfigHere
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from scaling.transformer.hf import importer
from scaling.transformer.hf.companions import Origin, read_origin
from scaling.transformer.hf.folder import read_folder
from scaling.transformer.hf.importer import import_model
from tests.transformer.hf.by_hand import (
    COMPANIONS,
    END,
    END_OF_TURN,
    LAYERS,
    weights,
    write_model,
    write_weights,
)

NAMES = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "self_attn.q_proj": "self_attention.query",
    "self_attn.k_proj": "self_attention.key",
    "self_attn.v_proj": "self_attention.value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_proj": "mlp.dense_in",
    "mlp.up_proj": "mlp.siglu_weight",
    "mlp.down_proj": "mlp.dense_out",
}


def ours(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a Llama by our names."""
    names = {f"model.layers.{i}.{a}": f"layers.{i + 1}.{b}" for i in range(LAYERS) for a, b in NAMES.items()}
    names |= {"model.embed_tokens": "layers.0.embedding", "model.norm": f"layers.{LAYERS + 1}.norm"}
    names |= {"lm_head": f"layers.{LAYERS + 2}.linear"}
    return {f"{names[name.removesuffix('.weight')]}.weight": tensor for name, tensor in theirs.items()}


@pytest.mark.parametrize(
    ("dtype", "shards", "tied", "piece"),
    [
        (torch.float32, 1, False, 400),
        (torch.bfloat16, 3, True, 100),
        (torch.float16, 2, False, 2**20),
        (torch.float64, 1, True, 64),
    ],
)
def test_every_bit_of_the_weights_becomes_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shards: int, tied: bool, piece: int
) -> None:
    monkeypatch.setattr(importer, "PIECE_BYTES", piece)
    tensors = weights(dtype, tied=tied)
    source = write_model(tmp_path / "m", tensors, shards=shards, config={"tie_word_embeddings": tied})
    done = import_model(source, tmp_path / "c")
    stored = find_newest(tmp_path / "c").require()
    assert (done.checkpoint, done.model_type, done.remarks) == (stored.path, "llama", ())
    assert stored.path == tmp_path / "c" / "global_step0"
    expected = ours(tensors)
    assert stored.manifest.tensors.keys() == expected.keys()
    with CheckpointReader(stored) as reader:
        for name, tensor in expected.items():
            assert torch.equal(reader.read(name), tensor)
            assert reader.read(name).dtype == dtype
    settings: Any = stored.manifest.scalars["config"]
    assert settings["transformer_architecture"]["precision"] == str(dtype).removeprefix("torch.")
    assert settings["data"] == {"eod_token_id": END}
    assert stored.manifest.information["family"] == "llama"
    assert stored.manifest.information["ranks"] == 1
    parts = [part for entry in stored.manifest.tensors.values() for part in entry.parts]
    assert max(part.box.size for part in parts) * dtype.itemsize <= piece


def test_what_belongs_to_the_model_is_left_beside(tmp_path: Path) -> None:
    source, target = write_model(tmp_path / "m"), tmp_path / "c"
    import_model(source, target)
    for name, content in COMPANIONS.items():
        assert (target / name).read_text() == content
    assert (target / "vocab.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    origin = read_origin(target)
    assert origin is not None
    assert (origin.model_type, origin.end_token_ids) == ("llama", (END, END_OF_TURN))
    assert origin.config["initializer_range"] == 0.02
    assert Tokenizer.from_file(target / "vocab.json").eos_token_id == END  # not the <|endoftext|> of its names


def a_link(name: str, to: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder.parent / "secret").mkdir()
        (folder.parent / "secret" / "key.jinja").write_text("secret")
        path = folder / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            path.rename(folder / "old")
        path.symlink_to(to)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (a_link(name, "../secret/key.jinja"), rf"{name} leads to .*key.jinja, outside of the folder, and was not")
            for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
        ),
        (a_link("chat_template.jinja", "../secret/key.jinja"), "chat_template.jinja leads to .*put the file itself"),
        (a_link("additional_chat_templates", "../secret"), "additional_chat_templates leads to .*secret, outside"),
        (
            a_link("additional_chat_templates/a.jinja", "../../secret/key.jinja"),
            "a.jinja leads to .*key.jinja, outside",
        ),
        (a_link("model.safetensors", "../blobs/gone"), "is a link to ../blobs/gone, where nothing is; download the"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not JSON"),
        (lambda folder: (folder.parent / "c").write_text(""), "c is there already and not a folder; name another"),
        (lambda folder: (folder.parent / "c").symlink_to("gone"), "c is there already and not a folder; name another"),
    ],
)
def test_a_folder_cannot_have_other_files_taken_along(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    source = write_model(tmp_path / "m")
    change(source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ScalingError, match=message):
        import_model(source, tmp_path / "c")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_whose_name_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        import_model(write_model(tmp_path / "m"), tmp_path / ("x" * 300))


def test_links_into_the_cache_of_downloads_are_followed(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    blobs = tmp_path / "models--some--model" / "blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate(("model.safetensors", "tokenizer.json", "chat_template.jinja")):
        (source / name).rename(blobs / str(number))
        (source / name).symlink_to(blobs / str(number))
    import_model(source, tmp_path / "c")
    assert (tmp_path / "c" / "chat_template.jinja").read_text() == COMPANIONS["chat_template.jinja"]


def test_nothing_of_an_interrupted_import_is_taken_for_the_next_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(importer, "save_pieces", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_model(write_model(tmp_path / "first"), tmp_path / "c")
    assert (tmp_path / "c" / "vocab.json").is_file()
    second = write_model(tmp_path / "second", tokenizer=False, config={"eos_token_id": 5})
    for name in COMPANIONS:
        (second / name).unlink(missing_ok=True)
    import_model(second, tmp_path / "c")
    left = {path.name for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert left.isdisjoint({"vocab.json", "tools.jinja", *COMPANIONS})
    origin = read_origin(tmp_path / "c")
    assert origin is not None
    assert origin.end_token_ids == (5,)


def test_the_model_generates_and_stops_where_its_configuration_says(tmp_path: Path) -> None:
    import_model(write_model(tmp_path / "m"), tmp_path / "c")
    model = TransformerInferenceModule.from_checkpoint(tmp_path / "c")
    assert model.end_token_ids == {END, END_OF_TURN}
    assert model.generate(3, input_text="the cat").completion_tokens
    generation = tmp_path / "c" / "generation_config.json"
    generation.write_text('{"eos_token_id": 11}')
    assert TransformerInferenceModule.from_checkpoint(tmp_path / "c").end_token_ids == {END, END_OF_TURN, 11}


def test_a_model_without_tokenizer_and_ends_is_imported_with_remarks(tmp_path: Path) -> None:
    done = import_model(write_model(tmp_path / "m", config={"eos_token_id": None}, tokenizer=False), tmp_path / "c")
    assert ["tokenizer.json" in remark for remark in done.remarks] == [True, False]
    assert "set data.eod_token_id" in done.remarks[1]
    assert TransformerConfigHere.from_yaml(done.config_file).data.eod_token_id is None
    assert not (tmp_path / "c" / "vocab.json").exists()


def test_old_files_are_read(tmp_path: Path) -> None:
    """With the tied head as well, and with buffers that nobody needs."""
    tensors = weights(tied=True)
    old = tensors | {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    source = write_model(
        tmp_path / "m",
        old,
        config={"tie_word_embeddings": True, "rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
    )
    import_model(source, tmp_path / "c")
    assert find_newest(tmp_path / "c").require().manifest.tensors.keys() == ours(tensors).keys()


def test_weights_of_mixed_types_keep_them(tmp_path: Path) -> None:
    tensors = weights(torch.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    import_model(write_model(tmp_path / "m", tensors), tmp_path / "c")
    stored = find_newest(tmp_path / "c").require()
    settings: Any = stored.manifest.scalars["config"]
    assert settings["transformer_architecture"]["precision"] == "bfloat16"
    assert stored.manifest.tensors[f"layers.{LAYERS + 1}.norm.weight"].dtype == "F32"


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        found = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(found | changes))

    return change


def with_tensors(**changes: Tensor | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors: dict[str, Any] = {**weights(), **changes}
        write_weights(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})

    return change


def another_tied_head(path: Path) -> None:
    configured(tie_word_embeddings=True)(path)


def a_tokenizer_that_is_too_large(path: Path) -> None:
    (path / "tokenizer.json").write_text(train_tokenizer(["the cat sat on the mat, did it not?"] * 2, 280).to_str())


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("{}")


def a_pipe(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return change


def cut_off(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


NORM, HEAD = "model.norm.weight", "lm_head.weight"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown field": (configured(number_of_wings=2), r"config.json.*\n?.*number_of_wings"),
    "attention": (configured(use_bidirectional_attention=True), r"use_bidirectional_attention"),
    "alibi": (configured(alibi=True), r"alibi"),
    "rope": (configured(rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}), r"rope.*spiral"),
    "quantized": (configured(quantization_config={"bits": 4}), r"quantization_config"),
    "code": (configured(auto_map={"AutoModel": "m.M"}, model_type="mine"), r"model_type"),
    "class": (configured(architectures=["LlamaForSequenceClassification"]), r"LlamaForSequenceClassification"),
    "family": (configured(model_type="opt"), r"opt"),
    "missing": (with_tensors(**{NORM: None}), rf"m lacks {NORM}; the download is incomplete"),
    "extra": (with_tensors(more=torch.ones(1)), r"model.safetensors holds more, which a LlamaForCausalLM with this"),
    "shape": (with_tensors(**{NORM: torch.ones(17)}), rf"{NORM} has the shape \[17\], but config.json makes it \[16\]"),
    "integers": (with_tensors(**{NORM: torch.ones(16, dtype=torch.int8)}), rf"{NORM} is of type I8; only weights"),
    "tied": (another_tied_head, rf"{HEAD} differs from model.embed_tokens.weight, but tie_word_embeddings in config"),
    "tokenizer": (
        a_tokenizer_that_is_too_large,
        r"tokenizer.json has token ids up to 27\d, .*271; .*remove what is beyond",
    ),
    "no tokenizer": (no_tokenizer, r"tokenizer.json is not a tokenizer file"),
    "end": (configured(eos_token_id=[7, 271]), r"config.json: eos_token_id names token 271, outside the vocabulary"),
    "truncated": (cut_off, r"model.safetensors is damaged or cut off"),
    "pipe": (a_pipe("tokenizer.json"), r"tokenizer.json is not a regular file"),
    "pipe of templates": (a_pipe("chat_template.jinja"), r"chat_template.jinja is not a regular file"),
}


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    path = write_model(tmp_path / "m")
    change(path)
    with pytest.raises(ScalingError, match=message):
        import_model(path, tmp_path / "c")
    assert [found.name for found in tmp_path.iterdir()] == ["m"]


def test_templates_with_other_names_stay_behind(tmp_path: Path) -> None:
    """And nothing is written elsewhere than into the target."""
    path = write_model(tmp_path / "m")
    templates = path / "additional_chat_templates"
    for name in (".hidden.jinja", "code.py", "a b.jinja"):
        (templates / name).write_text("x")
    (templates / "inner.jinja").mkdir()
    with pytest.raises(CheckpointError, match=r"inner.jinja is not a regular file"):
        import_model(path, tmp_path / "c")
    (templates / "inner.jinja").rmdir()
    import_model(path, tmp_path / "c")
    assert [file.name for file in (tmp_path / "c" / "additional_chat_templates").iterdir()] == ["tools.jinja"]


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    source, target = write_model(tmp_path / "m"), tmp_path / "c"
    with pytest.raises(ConfigError, match="is the folder of the model itself"):
        import_model(source, source)
    target.mkdir()
    (target / "config.yml").write_text("trainer: {}")
    with pytest.raises(ConfigError, match=r"config.yml exists already and is not of an import"):
        import_model(source, target)
    (target / "config.yml").unlink()
    import_model(source, target)
    with pytest.raises(CheckpointError, match="global_step0 exists already"):
        import_model(source, target)
    (target / "global_step0").rename(target / "global_step5")
    (source / "tokenizer.json").write_text(train_tokenizer(["another"], 260).to_str())
    with pytest.raises(CheckpointError, match="holds checkpoints of another tokenizer"):
        import_model(source, target)
    (source / "tokenizer.json").write_bytes((target / "vocab.json").read_bytes())
    (target / "huggingface.json").write_bytes(Origin("gemma2").encode())
    with pytest.raises(CheckpointError, match="holds checkpoints of another model"):
        import_model(source, target)


def test_a_full_disk_leaves_no_checkpoint_and_the_next_import_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_model(tmp_path / "m"), tmp_path / "c"
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:*=enospc")
    with pytest.raises(StorageError, match="No space left"):
        import_model(source, target)
    assert not list(target.glob("global_step*"))
    assert not list(target.glob(".tmp*"))
    monkeypatch.delenv("SCALING_FAULT")
    import_model(source, target)


def test_files_that_change_meanwhile_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(tmp_path / "m")

    def read_and_change(path: Path) -> Any:
        found = read_folder(path)
        write_weights(path, dict(reversed(weights(torch.float16).items())))
        return found

    monkeypatch.setattr(importer, "read_folder", read_and_change)
    with pytest.raises(CheckpointError, match="it was changed while it was read"):
        import_model(source, tmp_path / "c")
    assert not list((tmp_path / "c").glob("global_step*"))
