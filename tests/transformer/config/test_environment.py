"""What a configuration needs around it is checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import ConfigError
from scaling.core.logging import packages
from scaling.transformer.config import TransformerConfig, environment
from scaling.transformer.config.environment import TransformerConfigHere, environment_problems, visible_gpus
from scaling.transformer.data.tokenizer import tokenizer_digest, train_tokenizer


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_tokenizer(name: str, vocab_size: int = 257) -> Path:
    train_tokenizer([], vocab_size).save(Path(name))
    return Path(name)


def make_data(prefix: str, *, token: int = 5, tokenizer: Path | None = None, end: int | None = None) -> None:
    digest = None if tokenizer is None else tokenizer_digest(tokenizer)
    with MemoryMapDatasetBuilder(Path(prefix), np.uint16, tokenizer_sha256=digest, eod_token_id=end) as builder:
        builder.add(np.array([token] * 2049))  # a sequence of the default length


def lacking(values: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in environment_problems(TransformerConfig.from_dict(values))]


def test_nothing_is_lacking_where_everything_is_there() -> None:
    for name in ("hosts", "script.py"):
        Path(name).touch()
    Path("load").mkdir()
    make_data("a", tokenizer=make_tokenizer("v.json"))
    values = {
        "data": {"data_prefixes": ["a"], "validation_data_prefixes": ["a"]},
        "transformer_architecture": {"vocab_file": "v.json"},
        "runner": {"hostsfile": "hosts", "script": "script.py"},
        "trainer": {"load_dir": "load", "save_dir": "new/folder"},
        "logger": {"log_dir": "load"},
    }
    assert lacking(values) == []


def test_data_sets_that_end_documents_differently_are_named() -> None:
    for name, end in (("a", 5), ("b", 6)):
        make_data(name, end=end)
    data = {"data_prefixes": ["a", "b"]}
    (problem,) = lacking({"data": data, "transformer_architecture": {"vocab_size": 9}})
    assert problem.startswith("data.eod_token_id: is not given, and documents end differently: those of a with 5 and")
    assert lacking({"data": {**data, "eod_token_id": 6}, "transformer_architecture": {"vocab_size": 9}}) == []


def test_everything_that_is_lacking_is_named() -> None:
    for name in ("a.bin", "b.bin", "b.idx", "file"):
        Path(name).touch()
    values = {
        "data": {"data_prefixes": ["a", "b.bin"], "validation_data_prefixes": ["c"]},
        "transformer_architecture": {"vocab_file": "v.json"},
        "runner": {"hostsfile": "hosts", "script": "script.py"},
        "trainer": {"load_dir": "load", "save_dir": "file/x"},
        "logger": {"log_dir": "file"},
    }
    assert lacking(values) == [
        "data.data_prefixes.0: is 'a', but there is no .idx file; make it with `scaling data tokenize INPUT --output a "
        "--tokenizer FILE`",
        "data.data_prefixes.1: is 'b.bin', but there is no .bin and no .idx file; leave out .bin",
        "data.validation_data_prefixes.0: is 'c', but there is no .bin and no .idx file; make it with `scaling data "
        "tokenize INPUT --output c --tokenizer FILE`",
        "transformer_architecture.vocab_file: is 'v.json', but there is no such file; correct it",
        "runner.hostsfile: is 'hosts', but there is no such file; correct it",
        "runner.script: is 'script.py', but there is no such file; correct it",
        "trainer.save_dir: is 'file/x', but 'file' is a file; name another folder",
        "logger.log_dir: is 'file', but 'file' is a file; name another folder",
        "trainer.load_dir: is 'load', but there is no such folder; correct it",
    ]


def test_a_device_is_no_folder_to_write_to() -> None:
    assert lacking({"logger": {"log_dir": "/dev/null/x"}}) == [
        "logger.log_dir: is '/dev/null/x', but '/dev/null' is a file; name another folder"
    ]


def test_a_name_that_no_file_can_have_is_named_like_a_file_that_is_not_there() -> None:
    name = "x" * 300
    values = {
        "data": {"data_prefixes": [name]},
        "transformer_architecture": {"vocab_file": name},
        "trainer": {"load_dir": name, "save_dir": f"{name}/y"},
        "logger": {"log_dir": name},
    }
    assert [problem.split(":")[0] for problem in lacking(values)] == [
        "data.data_prefixes.0",
        "transformer_architecture.vocab_file",
        "trainer.load_dir",
    ]


def test_data_sets_that_the_model_cannot_be_trained_on_are_named() -> None:
    make_data("large", token=300)
    make_data("foreign", tokenizer=make_tokenizer("other.json"))
    make_data("cut")
    Path("cut.bin").write_bytes(b"")
    train_tokenizer(["some text", "some text"], 270).save(Path("v.json"))
    values = {
        "data": {"data_prefixes": ["large", "foreign"], "validation_data_prefixes": ["absent", "cut"]},
        "transformer_architecture": {"vocab_file": "v.json"},
    }
    large, foreign, absent, cut = lacking(values)
    assert large.startswith("data.data_prefixes.0: large contains token 300, but the vocabulary is 0 to 2")
    assert foreign.startswith("data.data_prefixes.1: foreign was made with a tokenizer of SHA-256")
    assert absent.startswith("data.validation_data_prefixes.0: is 'absent', but there is no .bin")
    assert cut.startswith("data.validation_data_prefixes.1: cut.bin is damaged or incomplete")


def test_data_is_compared_with_what_is_known() -> None:
    make_data("a", token=300, tokenizer=make_tokenizer("v.json"))
    assert lacking({"data": {"data_prefixes": ["a"]}}) == []
    Path("v.json").write_text("{")
    (problem,) = lacking({"data": {"data_prefixes": ["a"]}, "transformer_architecture": {"vocab_file": "v.json"}})
    assert problem.startswith("transformer_architecture.vocab_file: tokenizer file v.json is not a tokenizer file")


def load_dir_problems(*, assert_checkpoint_loaded: bool = False, **folders: str) -> list[str]:
    return lacking({"trainer": {"assert_checkpoint_loaded": assert_checkpoint_loaded, **folders}})


def test_a_load_dir_that_is_gone_is_no_problem_once_the_run_has_checkpoints_of_its_own() -> None:
    missing = ["trainer.load_dir: is 'gone', but there is no such folder; correct it"]
    assert load_dir_problems(load_dir="gone", save_dir="own") == missing
    Path("own/.tmp-global_step3-0").mkdir(parents=True)
    assert load_dir_problems(load_dir="gone", save_dir="own") == missing
    Path("own/global_step3").mkdir()
    assert load_dir_problems(load_dir="gone", save_dir="own") == []


def test_a_load_dir_that_is_save_dir_is_made_by_the_first_start() -> None:
    for same in ("own", "own/", "./x/../own", str(Path("own").absolute())):
        assert load_dir_problems(load_dir=same, save_dir="own") == []
    assert load_dir_problems(load_dir="own", save_dir="own", assert_checkpoint_loaded=True) == [
        "trainer.load_dir: is 'own', as save_dir is, but there is no such folder yet, so nothing can be loaded; set "
        "assert_checkpoint_loaded to false for the first start, or correct it"
    ]


@pytest.mark.parametrize("size", [None, 300])
def test_a_missing_tokenizer_hides_nothing_else(size: int | None) -> None:
    make_data("cut")
    Path("cut.bin").write_bytes(b"")
    values = {
        "data": {"data_prefixes": ["cut"]},
        "transformer_architecture": {"vocab_file": "v.json", "vocab_size": size},
        "runner": {"script": "x.py"},
    }
    cut, tokenizer, script = lacking(values)
    assert cut.startswith("data.data_prefixes.0: cut.bin is damaged or incomplete")
    assert tokenizer == "transformer_architecture.vocab_file: is 'v.json', but there is no such file; correct it"
    assert script.startswith("runner.script: ")


@pytest.mark.parametrize("size", [None, 0, 257, 300])
def test_a_vocabulary_holds_the_tokens_of_its_tokenizer(size: int | None) -> None:
    train_tokenizer([], 257).save(Path("v.json"))
    assert lacking({"transformer_architecture": {"vocab_file": "v.json", "vocab_size": size}}) == []


def test_a_vocabulary_that_is_too_small_or_whose_tokenizer_cannot_be_read_is_named() -> None:
    train_tokenizer([], 257).save(Path("v.json"))
    assert lacking({"transformer_architecture": {"vocab_file": "v.json", "vocab_size": 256}}) == [
        "transformer_architecture.vocab_size: is 256, less than the 257 tokens of vocab_file; set it to null, or to at "
        "least that"
    ]
    Path("v.json").write_text("{")
    (problem,) = lacking({"transformer_architecture": {"vocab_file": "v.json", "vocab_size": 256}})
    assert problem.startswith("transformer_architecture.vocab_file: tokenizer file v.json is not a tokenizer file")


def test_missing_files_are_reported_with_the_problems_of_other_sections() -> None:
    with pytest.raises(ConfigError) as raised:
        TransformerConfigHere.from_dict({"runner": {"script": "x.py"}, "optimizer": {"beta1": 2}})
    assert [problem.path for problem in raised.value.problems] == ["optimizer.beta1", "runner.script"]


def test_metrics_are_sent_only_by_packages_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", {"wandb": object()}.get)
    values = {"logger": {"log_dir": "x", "use_wandb": True, "use_tensorboard": True}}
    assert lacking(values) == [
        "logger.use_tensorboard: is true, but the package tensorboard is not installed; `pip install tensorboard` or "
        "set it to false"
    ]
    assert lacking({"logger": {"log_dir": "x"}}) == []


def test_each_process_needs_a_gpu_where_gpus_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 3}
    monkeypatch.setattr(environment, "visible_gpus", lambda: 2)
    assert lacking({"topology": {**sizes, "device": "cuda"}}) == [
        "topology.device: is cuda and each of the 3 processes needs a GPU, but 2 are visible here; reduce the sizes, "
        "or set device to cpu or auto"
    ]
    assert lacking({"topology": {**sizes, "device": "auto"}}) == []
    assert lacking({"topology": {**sizes, "device": "cuda"}, "runner": {"runner_type": "pdsh"}}) == []
    for enough_or_unknown in (3, None):
        monkeypatch.setattr(environment, "visible_gpus", lambda gpus=enough_or_unknown: gpus)
        assert lacking({"topology": {**sizes, "device": "cuda"}}) == []


def test_gpus_are_counted_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"": 0, "-1": 0, "0": 1, "3,1": 2, "GPU-a,GPU-b": 2, "0,-1,1": 1}
    assert {chosen: visible_gpus({"CUDA_VISIBLE_DEVICES": chosen}, tmp_path) for chosen in counts} == counts
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == 2
    (tmp_path / "dxg").touch()
    assert visible_gpus({}, tmp_path) is None
    monkeypatch.setattr("sys.platform", "darwin")
    assert visible_gpus({}, tmp_path) is None
