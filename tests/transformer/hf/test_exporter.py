"""An export writes back what an import took in, bit by bit, from a checkpoint of any layout, at once or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from scaling.core import (
    Box,
    Checkpointer,
    CheckpointError,
    ConfigError,
    ExitStatus,
    GlobalTensor,
    StorageError,
    StoredCheckpoint,
    TensorFile,
)
from scaling.core.boxes import whole
from scaling.core.checkpoint import plain_files
from scaling.core.checkpoint.reader import CheckpointReader, cast
from scaling.core.checkpoint.search import find_newest
from scaling.core.storage.writing import write_fully
from scaling.transformer.data.tokenizer import train_tokenizer
from scaling.transformer.hf import exporter, importer
from scaling.transformer.hf.check import check_export
from scaling.transformer.hf.companions import companions_of_checkpoints
from scaling.transformer.hf.exporter import export_model, in_shards
from scaling.transformer.hf.importer import import_model
from scaling.transformer.hf.tensors import TensorMap
from tests.core.checkpoint.virtual import on_ranks
from tests.distributed import run_distributed
from tests.transformer.hf.by_hand import (
    COMPANIONS,
    END,
    END_OF_TURN,
    VOCABULARY,
    config_of,
    read_weights,
    same_bits,
    weights,
    write_model,
)
from tests.transformer.small import build_corpus, train_as_rank, train_small


def imported(tmp_path: Path, tensors: dict[str, Tensor] | None = None, **options: Any) -> StoredCheckpoint:
    import_model(write_model(tmp_path / "m", tensors, **options), tmp_path / "c")
    return find_newest(tmp_path / "c").require()


def resaved(stored: StoredCheckpoint, target: Path) -> StoredCheckpoint:
    """Save a checkpoint as four ranks would: two halves of each tensor by columns, of which two ranks save rows."""
    with CheckpointReader(stored) as reader:
        values = {name: reader.read(name) for name in stored.manifest.tensors}
    shutil.copytree(stored.path.parent, target, ignore=shutil.ignore_patterns("global_step*"))

    def save(ranks: Any) -> None:
        tensors = []
        for name, tensor in values.items():
            box = part_of(tuple(tensor.shape), ranks.rank)
            view = tensor[box.slices(whole(tuple(tensor.shape)))]
            tensors.append(GlobalTensor(name, tuple(tensor.shape), [(box, view)]))
            tensors.append(GlobalTensor(f"optimizer.master.{name}", tuple(tensor.shape), [(box, view.double())]))
        Checkpointer(target, communicator=ranks).save(3, tensors, stored.manifest.scalars)

    on_ranks(4, save)
    return find_newest(target).require()


def part_of(shape: tuple[int, ...], rank: int) -> Box:
    column, row = divmod(rank, 2)
    ranges = [(row, shape[0])] if len(shape) == 1 else [(row, shape[0]), (column, shape[1])]
    offset = tuple(index * (size // 2) for index, size in ranges)
    sizes = tuple(size - size // 2 if index else size // 2 for index, size in ranges)
    if len(shape) == 1 and column:
        sizes = (0,)
    return Box(offset, sizes)


@pytest.mark.parametrize(
    ("dtype", "shards", "tied", "piece"),
    [(torch.float32, 1, False, 400), (torch.bfloat16, 3, True, 100), (torch.float16, 2, False, 2**20)],
)
def test_what_was_imported_is_written_back_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shards: int, tied: bool, piece: int
) -> None:
    monkeypatch.setattr(importer, "PIECE_BYTES", piece)
    monkeypatch.setattr(exporter, "PIECE_BYTES", piece)
    tensors = weights(dtype, tied=tied)
    name = str(dtype).removeprefix("torch.")
    stored = imported(tmp_path, tensors, shards=shards, config={"tie_word_embeddings": tied, "dtype": name})
    sizes: list[int] = []

    def written(descriptor: int, data: memoryview) -> None:
        sizes.append(len(data))
        write_fully(descriptor, data)

    monkeypatch.setattr(plain_files, "write_fully", written)
    for number, source in enumerate((stored, resaved(stored, tmp_path / "r"))):
        sizes.clear()
        done = export_model(source, tmp_path / f"e{number}", max_shard_bytes=10_000)
        assert len([size for size in sizes if size > piece]) <= len(done.files)  # their headers
        assert done.model_type == "llama"
        assert len(done.files) > 1
        assert same_bits(read_weights(done.path), tensors)
        given = config_of(tmp_path / "m")
        given.pop("transformers_version")
        assert config_of(done.path) == given
        for companion, content in COMPANIONS.items():
            assert (done.path / companion).read_text() == content
        assert (done.path / "tokenizer.json").read_bytes() == (tmp_path / "m" / "tokenizer.json").read_bytes()
        assert not (done.path / "huggingface.json").exists()


def test_an_index_says_where_each_tensor_is(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    done = export_model(stored, tmp_path / "e", max_shard_bytes=20_000)
    index = json.loads((done.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights().values())
    assert set(index["weight_map"].values()) == set(done.files)
    for file in done.files:
        with TensorFile(done.path, file, None) as opened:
            assert {name for name, where in index["weight_map"].items() if where == file} == set(opened.slots)
            assert sum(slot.stop - slot.start for slot in opened.slots.values()) <= 20_000
    again = export_model(stored, tmp_path / "whole")
    assert again.files == ("model.safetensors",)
    assert not (again.path / "model.safetensors.index.json").exists()
    assert b'"__metadata__":{"format":"pt"}' in (again.path / "model.safetensors").read_bytes()[:100]


def test_weights_are_rounded_on_request(tmp_path: Path) -> None:
    done = export_model(imported(tmp_path), tmp_path / "e", dtype=torch.bfloat16)
    assert same_bits(read_weights(done.path), weights(torch.bfloat16))
    assert config_of(done.path)["dtype"] == "bfloat16"


def test_a_field_that_was_not_there_is_not_added(tmp_path: Path) -> None:
    done = export_model(imported(tmp_path, config={"dtype": None}), tmp_path / "e")
    assert "dtype" not in config_of(done.path)
    done = export_model(find_newest(tmp_path / "c").require(), tmp_path / "f", dtype=torch.float16)
    assert config_of(done.path)["dtype"] == "float16"


def test_a_training_on_shorter_texts_leaves_the_model_its_length(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    settings: Any = stored.manifest.scalars["config"]
    settings["transformer_architecture"]["sequence_length"] = 16
    assert config_of(export_model(stored, tmp_path / "e").path)["max_position_embeddings"] == 32


def test_what_lies_beside_travels_with_a_cast(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    beside = companions_of_checkpoints(stored.path.parent)
    cast(stored, tmp_path / "d", torch.bfloat16)
    beside.write(tmp_path / "d", tokenizer_name="vocab.json")
    done = export_model(find_newest(tmp_path / "d").require(), tmp_path / "e")
    assert same_bits(read_weights(done.path), weights(torch.bfloat16))
    assert config_of(done.path)["initializer_range"] == 0.02


@pytest.mark.parametrize("section", [{"mlp_type": "swiglu", "norm_type": "rms", "attention_bias": False}, {}])
def test_a_model_that_was_trained_here_is_exported(tmp_path: Path, section: dict[str, Any]) -> None:
    """The default architecture is a serial GPT-NeoX; a model with a tokenizer of its own."""
    size = {"vocab_size": 270, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "sequence_length": 32}
    if section:
        section = section | {"mlp_bias": False}
    corpus = build_corpus(tmp_path / "data", largest=255)
    train_tokenizer(["the cat sat on the mat"], 262).save(tmp_path / "tokenizer.json")
    settings = {f"transformer_architecture.{key}": value for key, value in (size | section).items()}
    defaults = {
        f"transformer_architecture.{key}": None
        for key in ("attention_num_kv_heads", "mlp_type", "mlp_factor", "norm_type")
        if key not in section
    }
    run = {
        "transformer_architecture.vocab_file": str(tmp_path / "tokenizer.json"),
        "trainer.save_dir": str(tmp_path / "c"),
        "trainer.train_iterations": 1,
        "data.eod_token_id": 0,
    }
    train_small(corpus, tmp_path / "run", defaults, settings, run)
    stored = find_newest(tmp_path / "c").require()
    done = export_model(stored, tmp_path / "e")
    assert done.model_type == ("llama" if section else "gpt_neox")
    assert json.loads((done.path / "generation_config.json").read_text()) == {"eos_token_id": 0}
    assert json.loads((done.path / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    config = config_of(done.path)
    assert (config["eos_token_id"], config["dtype"]) == (0, "float32")
    checked = check_export(stored.path, done.path)
    assert checked.difference is not None
    assert checked.difference < 1e-5


def test_a_run_in_eight_processes_from_an_import_is_exported(tmp_path: Path) -> None:
    """A step of rate zero in 2 x 2 x 2 with ZeRO leaves every bit; tokenizer, templates and the family came along."""
    stored = imported(tmp_path)
    corpus = build_corpus(tmp_path / "data", largest=255)
    sections = yaml.safe_load((tmp_path / "c" / "config.yml").read_text())
    sections["trainer"] |= {"save_dir": str(tmp_path / "t"), "train_iterations": 1, "save_interval": None}
    sections["logger"]["log_dir"] = str(tmp_path / "run")
    sections["data"]["data_prefixes"] = [str(corpus)]
    sections["optimizer"] = {"zero": True}
    sections["learning_rate_scheduler"] = {"learning_rate": 0.0}
    sizes = {f"{axis}_parallel_size": 2 for axis in ("pipe", "data", "model")}
    sections["topology"] |= {**sizes, "sequence_parallel": True, "device": "cpu"}
    assert set(run_distributed(train_as_rank, 8, sections)) == {ExitStatus.DONE}
    trained = find_newest(tmp_path / "t").require()
    assert trained.manifest.holds("optimizer.")
    assert trained.step == stored.step + 1
    done = export_model(trained, tmp_path / "e")
    assert same_bits(read_weights(done.path), weights())
    given = config_of(tmp_path / "m")
    given.pop("transformers_version")
    assert config_of(done.path) == given
    for companion, content in COMPANIONS.items():
        assert (done.path / companion).read_text() == content


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    for name in ("file", "folder", "link"):
        target = tmp_path / name
        if name == "file":
            target.touch()
        elif name == "folder":
            target.mkdir()
            (target / "x").touch()
        else:
            target.symlink_to("nowhere")
        with pytest.raises(ConfigError, match="is there already and not an empty folder"):
            export_model(stored, target)
    (tmp_path / "folder" / "x").unlink()
    assert export_model(stored, tmp_path / "folder").path == tmp_path / "folder"


def test_what_a_killed_export_left_is_removed_by_the_next_one_to_the_same_place(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    for name in (".tmp-e-0123abcd", ".tmp-e-mine", ".tmp-other-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    export_model(stored, tmp_path / "e")
    assert sorted(path.name for path in tmp_path.glob(".tmp-*")) == [".tmp-e-mine", ".tmp-other-0123abcd"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = imported(tmp_path)
    before = sorted(tmp_path.iterdir())
    written = write_fully
    calls: list[int] = []

    def full(descriptor: int, data: memoryview) -> None:
        calls.append(len(data))
        if len(calls) == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(descriptor, data)

    monkeypatch.setattr(plain_files, "write_fully", full)
    with pytest.raises(StorageError, match=r"exporting .* failed: No space left on device"):
        export_model(stored, tmp_path / "e")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_language_model_or_not_its_own_is_refused(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    Checkpointer(tmp_path / "x").save(1, [GlobalTensor("w", (2,), [(whole((2,)), tensor)])], {})
    with pytest.raises(CheckpointError, match="has no transformer_architecture"):
        export_model(find_newest(tmp_path / "x").require(), tmp_path / "e")
    stored = imported(tmp_path)
    changes: list[tuple[str, dict[str, Tensor | None]]] = [
        ("does not hold layers.0.embedding.weight", {"layers.0.embedding.weight": None}),
        (r"layers.0.embedding.weight has the shape \[3\]", {"layers.0.embedding.weight": torch.ones(3)}),
        ("is of type I64; cast", {"layers.0.embedding.weight": torch.ones(VOCABULARY, 16, dtype=torch.int64)}),
        ("holds layers.1.adapter, which have no place", {"layers.1.adapter": torch.ones(3)}),
    ]
    for number, (message, change) in enumerate(changes):
        with CheckpointReader(stored) as reader:
            values: dict[str, Tensor | None] = {name: reader.read(name) for name in stored.manifest.tensors}
        tensors = [
            GlobalTensor(name, tuple(value.shape), [(whole(tuple(value.shape)), value)])
            for name, value in (values | change).items()
            if value is not None
        ]
        Checkpointer(tmp_path / f"y{number}").save(1, tensors, stored.manifest.scalars)
        with pytest.raises(CheckpointError, match=message):
            export_model(find_newest(tmp_path / f"y{number}").require(), tmp_path / "e")
    train_tokenizer(["another"], 260).save(tmp_path / "c" / "vocab.json")
    with pytest.raises(CheckpointError, match=r"vocab.json is not the tokenizer that"):
        export_model(stored, tmp_path / "e")
    (tmp_path / "c" / "vocab.json").unlink()
    assert "no vocab.json beside" in export_model(stored, tmp_path / "e").remarks[0]
    (tmp_path / "c" / "huggingface.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"huggingface.json is not what an import writes"):
        export_model(stored, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_ends_are_kept_where_generation_defaults_are_lost(tmp_path: Path) -> None:
    stored = imported(tmp_path)
    (tmp_path / "c" / "generation_config.json").unlink()
    done = export_model(stored, tmp_path / "e")
    assert json.loads((done.path / "generation_config.json").read_text()) == {"eos_token_id": [END, END_OF_TURN]}


def test_a_tensor_larger_than_a_file_gets_one_of_its_own() -> None:
    theirs = [
        exporter.Written(TensorMap(str(size), (size,), ()), dtype)
        for size, dtype in ((3, torch.bfloat16), (40, torch.float32), (1, torch.bfloat16), (2, torch.float32))
    ]
    shards = in_shards(theirs, 100)
    assert [[one.theirs.name for one in shard] for shard in shards.values()] == [["3"], ["40"], ["2", "1"]]
    assert list(shards) == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
