"""What a run would start from, and what it trains, is known from names and manifests before a process is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaling.core.checkpoint.base import BaseReference
from scaling.core.checkpoint.folders import commit, prepare, step_folder
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.search import glance
from scaling.transformer.config import TransformerConfig
from scaling.transformer.config.environment import environment_problems
from scaling.transformer.config.notes import notes


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lacking(values: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in environment_problems(TransformerConfig.from_dict(values))]


def save(directory: str, step: int, values: dict[str, Any] | None = None, **scalars: Any) -> None:
    """Leave a checkpoint of no tensors that was saved with these settings and a vocabulary of 67."""
    config = TransformerConfig.from_dict(values or {}).as_dict()
    config["transformer_architecture"]["vocab_size"] = 67
    config["data"]["eod_token_id"] = 0
    folder = Path(directory)
    scalars = {"config": config, "trainer": {}, "optimizer": {}, **scalars}
    commit(prepare(folder, step), Manifest(step, {}, {}, scalars, {}), step_folder(folder, step))


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_parameters_and_groups_that_do_not_meet_are_named() -> None:
    groups = [
        {"group_name": "heads", "parameters_include": ["haed"]},
        {"group_name": "rest", "parameters_include": ["weight"]},
    ]
    missing, idle = lacking({"training_groups": groups, "transformer_architecture": {"num_layers": 1}})
    assert missing.startswith("training_groups: layers.1.input_layernorm.bias, ")
    assert "in no group" in missing
    assert idle.startswith("training_groups: group 'heads' takes no parameter")
    two: list[dict[str, Any]] = [{"group_name": "biases", "parameters_include": ["bias"]}, {"group_name": "rest"}]
    assert "is taken by several groups (biases, rest)" in lacking({"training_groups": two})[0]
    two[1]["parameters_exclude"] = ["bias"]
    assert lacking({"training_groups": two}) == []
    frozen = {"training_groups": groups[1:], "training": {"allow_missing_params_in_optimizer": True}}
    assert lacking(frozen) == []


@pytest.mark.parametrize("folders", [{"save_dir": "run"}, {"save_dir": "new", "load_dir": "run"}])
def test_a_checkpoint_of_another_model_is_refused(folders: dict[str, str]) -> None:
    save("run", 3, {"transformer_architecture": {"num_layers": 4}, "trainer": {"seed": 1}})
    here = {"trainer": {**folders, "seed": 1}}
    assert lacking({**here, "transformer_architecture": {"num_layers": 4}}) == []
    (problem,) = lacking({**here, "transformer_architecture": {"num_layers": 5, "vocab_size": 67}})
    assert problem.startswith("transformer_architecture.num_layers: 5, but 4 in the checkpoint.")
    accepted = {**here["trainer"], "accept_changes": ["transformer_architecture.num_layers"]}
    assert lacking({"trainer": accepted, "transformer_architecture": {"num_layers": 5}}) == []
    (size,) = lacking({**here, "transformer_architecture": {"num_layers": 4, "vocab_size": 68}})
    assert size.startswith("transformer_architecture.vocab_size: 68, but 67 in the checkpoint.")


def test_another_order_of_samples_is_refused_where_the_run_goes_on_from_its_place() -> None:
    save("run", 3, {"trainer": {"seed": 1}})
    (problem,) = lacking({"trainer": {"load_dir": "run", "seed": 2}})
    assert problem.startswith("trainer.seed: 2, but 1 in the checkpoint.")
    assert lacking({"trainer": {"load_dir": "run", "seed": 2, "load_context": False}}) == []


@pytest.mark.parametrize(
    ("files", "load_dir", "what"),
    [
        (["hf/model.safetensors", "hf/config.json"], "hf", "a checkpoint of Hugging Face"),
        (["ds/latest", "ds/global_step5/mp_rank_00_model_states.pt"], "ds", "a checkpoint of DeepSpeed"),
        (["ds/global_step5/mp_rank_00_model_states.pt"], "ds/global_step5", "a checkpoint of DeepSpeed"),
        (["mg/latest_checkpointed_iteration.txt"], "mg", "a checkpoint of Megatron"),
        (["old/global_step5/model_state_layer_0_E.pt"], "old", "scaling checkpoint import old/global_step5 TARGET"),
        (["run/checkpoints/global_step5/manifest.json"], "run", "run/checkpoints (global_step5); name that folder"),
        (["run/global_step50/manifest.json"], "run/global_step5", "no such folder; there are checkpoints in run (glob"),
        (["run/global_step5/manifest.json"], "run", "global_step5: run/global_step5"),
        (["logs/metrics.jsonl"], "logs", "holds no checkpoint; name a folder with folders global_step<N>"),
    ],
)
def test_a_folder_without_a_checkpoint_is_recognised(files: list[str], load_dir: str, what: str) -> None:
    touch(*files)
    (problem,) = lacking({"trainer": {"load_dir": load_dir}})
    assert problem.startswith(f"trainer.load_dir: is {load_dir!r}, ")
    assert what in problem


def test_an_empty_folder_to_load_from_is_noted_and_refused_where_a_checkpoint_must_be_loaded() -> None:
    Path("load").mkdir()
    config = TransformerConfig.from_dict({"trainer": {"load_dir": "load"}})
    assert "trainer.load_dir: (load) is an empty folder: training starts from random weights" in map(str, notes(config))
    (problem,) = lacking({"trainer": {"load_dir": "load", "assert_checkpoint_loaded": True}})
    assert problem.startswith("trainer.load_dir: is 'load', but holds no checkpoint")
    assert lacking({"trainer": {"assert_checkpoint_loaded": True}}) == []  # a note says that there is no folder at all
    (problem,) = lacking({"trainer": {"save_dir": "new", "assert_checkpoint_loaded": True}})
    assert problem.startswith("trainer.assert_checkpoint_loaded: is true, but there is no checkpoint in save_dir ('new")


def test_a_folder_that_cannot_be_saved_to_is_named() -> None:
    Path("link").symlink_to("absent")
    for folder in ("link", "link/run"):
        (problem,) = lacking({"trainer": {"save_dir": folder}})
        assert problem.startswith(f"trainer.save_dir: is {folder!r}, but 'link' is a link to 'absent', which does not")
    (problem,) = lacking({"trainer": {"save_dir": "run/global_step5"}})
    assert problem.startswith("trainer.save_dir: is 'run/global_step5', the name of one step's folder; to go on")


def test_a_checkpoint_that_holds_weights_only_is_named_with_the_settings_for_it() -> None:
    folder = Path("run")
    commit(prepare(folder, 0), Manifest(0, {}, {}, {}, {}), step_folder(folder, 0))
    (problem,) = lacking({"trainer": {"load_dir": "run"}})
    assert problem.startswith("trainer.load_dir: is 'run', but it lacks the numbers of steps and samples and the state")
    assert lacking({"trainer": {"load_dir": "run", "load_context": False, "load_optimizer_states": False}}) == []


def test_going_back_within_save_dir_is_refused() -> None:
    save("run", 3)
    save("run", 4)
    (problem,) = lacking({"trainer": {"save_dir": "run", "load_dir": "run/global_step3"}})
    assert problem.startswith("trainer.load_dir: names step 3 of save_dir itself")


def test_the_base_of_a_fine_tuning_is_looked_for_before_it_starts() -> None:
    tuning: dict[str, Any] = {"transformer_architecture": {"lora_config": {}}}
    save("base", 3)
    assert lacking({"trainer": {"load_dir": "base"}, **tuning}) == []  # whatever the settings say: weights only
    (problem,) = lacking({"trainer": {"save_dir": "base"}, **tuning})
    assert problem.startswith("trainer.save_dir: is 'base', but it holds a whole model, and this run saves only")
    reference = BaseReference.to(glance(Path("base")).require())
    save("run", 2, tuning, base=reference.as_dict())
    assert lacking({"trainer": {"save_dir": "run"}, **tuning}) == []
    (problem,) = lacking({"trainer": {"load_dir": "run"}})
    assert problem.startswith("trainer.load_dir: is 'run', but it holds only what was trained on a base, and this run")
    Path("base").rename("moved")
    (problem,) = lacking({"trainer": {"save_dir": "run"}, **tuning})
    assert problem.startswith(
        f"trainer.save_dir: holds global_step2, and this was trained on the base {reference}, whi"
    )
    assert lacking({"trainer": {"save_dir": "run", "load_dir": "moved"}, **tuning}) == []
