"""A model folder is read without trust: what is missing, a pickle, cut off or elsewhere is refused by name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core import ScalingError
from scaling.transformer.hf.companions import companions_of_model
from scaling.transformer.hf.folder import end_token_ids, read_folder
from tests.transformer.hf.by_hand import COMPANIONS, weights, write_index, write_model, write_weights

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_is_known_by_its_headers(tmp_path: Path, shards: int) -> None:
    folder = read_folder(write_model(tmp_path / "m", shards=shards))
    assert {name: tensor.shape for name, tensor in folder.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in weights().items()
    }
    assert len(folder.files) == shards
    assert folder.config["model_type"] == "llama"
    assert folder.generation["temperature"] == 0.5


def test_a_snapshot_of_links_is_read(tmp_path: Path) -> None:
    """As a download cache makes them: to files with other names beside the snapshots."""
    real = write_model(tmp_path / "blobs", shards=2)
    snapshot = tmp_path / "snapshots" / "main"
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    for path in [*real.glob("*.*"), *real.glob("*/*")]:
        link = snapshot / path.relative_to(real)
        link.symlink_to(os.path.relpath(path, link.parent))
    (tmp_path / "model").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "model"):
        assert len(read_folder(folder).tensors) == len(weights())
        assert companions_of_model(folder).others.keys() == COMPANIONS.keys()


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "additional_chat_templates"]
)
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """What it leads to would be copied beside the checkpoint, and exported from there."""
    path = write_model(tmp_path / "m")
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(
        ScalingError, match=rf"{name}.* leads to .*, outside of the folder, and was not read; put the file itself"
    ):
        companions_of_model(read_folder(path).path)


def test_a_name_may_be_a_single_letter(tmp_path: Path) -> None:
    assert "w" in read_folder(write_model(tmp_path / "m", weights() | {"w": torch.ones(1)})).tensors


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m")
    (path / "model.safetensors").rename(path / "weights.bin")
    (path / "model.safetensors").symlink_to("weights.bin")
    assert len(read_folder(path).tensors) == len(weights())


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (7, None, (7,)),
        ([7, 8], None, (7, 8)),
        (7, [9, 7], (7, 9)),
        (None, [9, 7], (9, 7)),
        (None, 3, (3,)),
        (None, None, ()),
        (0, None, (0,)),
    ],
)
def test_ends_are_those_of_the_configuration_then_of_generation(
    tmp_path: Path, config: Any, generation: Any, ends: tuple[int, ...]
) -> None:
    path = write_model(tmp_path / "m", config={"eos_token_id": config}, tokenizer=False)
    (path / "generation_config.json").write_text(f'{{"eos_token_id": {generation or "null"}}}')
    assert end_token_ids(read_folder(path)) == ends


@pytest.mark.parametrize("given", ["</s>", -1, True, [1, 2.5]])
def test_an_end_that_is_no_token_id_is_refused(tmp_path: Path, given: Any) -> None:
    path = write_model(tmp_path / "m", config={"eos_token_id": given}, tokenizer=False)
    with pytest.raises(ScalingError, match=r"config.json: eos_token_id is .*; it has to be token ids"):
        end_token_ids(read_folder(path))


def without_weights(path: Path) -> Path:
    for file in path.glob("*.safetensors*"):
        file.unlink()
    return path


def pickled(path: Path) -> None:
    (without_weights(path) / "pytorch_model.bin").write_bytes(pickle.dumps(print))


def only_gguf(path: Path) -> None:
    (without_weights(path) / "q4.gguf").write_bytes(b"GGUF")


def another_name(path: Path) -> None:
    (path / "model.safetensors").rename(path / "weights.safetensors")


def cut_off(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def sharded(change: Callable[[Path, dict[str, Any]], None]) -> Callable[[Path], None]:
    """Cut the model into two files, and change them or their index."""

    def apply(path: Path) -> None:
        names = list(weights())
        write_weights(without_weights(path), weights(), shards=2)
        weight_map: dict[str, Any] = {name: (FIRST, SECOND)[number % 2] for number, name in enumerate(names)}
        change(path, weight_map)
        write_index(path, weight_map)

    return apply


def a_missing_shard(path: Path, weight_map: dict[str, Any]) -> None:
    (path / SECOND).unlink()


def a_tensor_in_another_shard(path: Path, weight_map: dict[str, Any]) -> None:
    weight_map["model.norm.weight"] = FIRST if weight_map["model.norm.weight"] == SECOND else SECOND


def a_tensor_that_is_not_listed(path: Path, weight_map: dict[str, Any]) -> None:
    del weight_map["model.norm.weight"]


def a_tensor_that_is_not_there(path: Path, weight_map: dict[str, Any]) -> None:
    weight_map["more"] = FIRST


def elsewhere(name: object) -> Callable[[Path], None]:
    def change(path: Path, weight_map: dict[str, Any]) -> None:
        write_weights(path.parent, weights())  # there is something to be read
        weight_map["model.norm.weight"] = name

    return sharded(change)


def no_table(path: Path) -> None:
    (without_weights(path) / INDEX).write_text('{"metadata": {}}')


def strange_name(path: Path) -> None:
    write_weights(path, weights() | {"model.\x1b[31m": torch.ones(1)})


def empty_name(path: Path) -> None:
    write_weights(path, weights() | {"": torch.ones(1)})


def no_configuration(path: Path) -> None:
    (path / "config.json").unlink()


def an_adapter(path: Path) -> None:
    (path / "config.json").rename(path / "adapter_config.json")


def configuration(content: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "config.json").write_bytes(content)

    return change


def a_pipe(path: Path) -> None:
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


def a_pipe_of_weights(path: Path) -> None:
    os.mkfifo(without_weights(path) / "model.safetensors")


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, r"holds its weights as a pickle \(pytorch_model.bin\).* was not opened.*save_pretrained"),
    "gguf": (only_gguf, r"q4.gguf.*quantized.*gguf_file='q4.gguf'.*save_pretrained"),
    "name": (another_name, r"holds neither model.safetensors nor .*index.json, but weights.safetensors; rename"),
    "nothing": (without_weights, r"holds no weights: neither .*; download them"),
    "truncated": (cut_off, r"model.safetensors is damaged or cut off: .*describes .* bytes, the file has .*copy it"),
    "shard": (sharded(a_missing_shard), rf"incomplete: .*index.json names {SECOND}, but it is not there; download"),
    "other shard": (sharded(a_tensor_in_another_shard), r"'model.norm.weight', but .*index.json says that it is in"),
    "unlisted": (sharded(a_tensor_that_is_not_listed), r"'model.norm.weight', but .*index.json does not list it"),
    "absent": (sharded(a_tensor_that_is_not_there), rf"{FIRST} lacks more, which .* says to be there; download"),
    "above": (
        elsewhere("../model.safetensors"),
        r"index.json: weight_map says .* in '../model.safetensors'; only plain",
    ),
    "absolute": (elsewhere("/etc/passwd.safetensors"), r"in '/etc/passwd.safetensors'; only plain names"),
    "hidden": (elsewhere("..safetensors"), r"'..safetensors'; only plain names"),
    "below": (elsewhere("a/b.safetensors"), r"'a/b.safetensors'; only plain names"),
    "other kind": (elsewhere("pytorch_model.bin"), r"'pytorch_model.bin'; only plain names"),
    "number": (elsewhere(3), r"'3'; only plain names"),
    "table": (no_table, r"index.json has no weight_map; copy it again"),
    "name of a tensor": (strange_name, r"holds a tensor with a strange name: 'model.\\x1b\[31m'"),
    "no name of a tensor": (empty_name, r"holds a tensor with a strange name: ''"),
    "configuration": (no_configuration, r"holds no config.json; name the folder that"),
    "adapter": (an_adapter, r"holds no config.json; it is an adapter: import its model first, and"),
    "no JSON": (configuration(b"{"), r"config.json is not JSON .*; copy it again"),
    "no text": (configuration(b"\xff"), r"config.json is not JSON .*; copy it again"),
    "no object": (configuration(b"[]"), r"config.json holds no JSON object"),
    "twice": (configuration(b'{"a": 1, "a": 2}'), r"config.json is not JSON \(the key 'a' appears twice\)"),
    "not a number": (configuration(b'{"rope_theta": NaN}'), r"config.json is not JSON \(NaN is no number that can be"),
    "beyond numbers": (configuration(b'{"rope_theta": 1e400}'), r"config.json is not JSON \(1e400 is no number that"),
    "digits": (configuration(b'{"rope_theta": 1' + b"0" * 400 + b"}"), r"not JSON \(it has a number of 401 digits\)"),
    "deep": (configuration(b"[" * 200_000), r"config.json is not JSON"),
    "pipe": (a_pipe, r"config.json is not a regular file"),
    "pipe of weights": (a_pipe_of_weights, r"model.safetensors is not a regular file"),
}


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_what_cannot_be_read_is_refused(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    path = write_model(tmp_path / "m", tokenizer=False)
    change(path)
    with pytest.raises(ScalingError, match=message) as refused:
        read_folder(path)
    assert str(path) in str(refused.value)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, what in (("meta-llama/Llama", "is not there"), ("file", "is a file")):
        with pytest.raises(ScalingError, match=rf"{what}; name the folder .*hf download"):
            read_folder(tmp_path / name)
