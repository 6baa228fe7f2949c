"""A run that was interrupted goes on as if nothing had happened, in the same layout or another one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from scaling.core import CheckpointError, ConfigError, ExitStatus, StorageError
from scaling.core.storage.lock import locked
from scaling.core.trainer import run as running
from tests.core.storage.test_lock import another_process
from tests.distributed import run_distributed, run_world
from tests.transformer.small import (
    build_corpus,
    layout,
    metrics,
    nested,
    settings_of,
    state,
    statuses,
    train_as_rank,
    train_small,
    values,
)

INTERLEAVED = {"topology.pipe_schedule": "interleaved_1f1b", "topology.pipe_chunks_per_rank": 2}
ZERO = {"optimizer.zero": True}
HALF = {"trainer.train_iterations": 5}
DROPOUT = {"transformer_architecture.dropout_after_mlp": 0.1, "transformer_architecture.dropout_attention_probs": 0.1}
BFLOAT16 = {"transformer_architecture.precision": "bfloat16"}
FLOAT16 = {"transformer_architecture.precision": "float16", "optimizer.loss_scaler.initial_scale": 2.0**17}
IN_BACKGROUND = {"trainer.save_async": True, "trainer.save_interval": 2, "trainer.keep_last_checkpoints": 2}
OTHER_PARAMETERS = {"transformer_architecture.mlp_type": "default", "transformer_architecture.key_query_norm": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("corpus") / "training")


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of ten steps in one process."""
    return values(train_small(data, tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def half(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run of five steps in one process. Not to be written to."""
    folder = tmp_path_factory.mktemp("half")
    train_small(data, folder, HALF, saving(folder))
    return folder / "checkpoints"


def saving(run: Path) -> dict[str, Any]:
    return {"trainer.save_dir": str(run / "checkpoints")}


def loading(half: Path, **trainer: Any) -> dict[str, Any]:
    return {"trainer.load_dir": str(half), **{f"trainer.{name}": value for name, value in trainer.items()}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(layout(1, 1, 1), {**layout(2, 2, 2), **ZERO}, id="cut"),
        pytest.param({**layout(2, 2, 2), **ZERO}, layout(1, 1, 1), id="joined"),
        pytest.param({**layout(1, 2, 1), **INTERLEAVED}, {**layout(2, 1, 2), **ZERO}, id="turned"),
    ],
)
def test_another_layout_goes_on_with_the_same_losses(
    data: Path, uninterrupted: list[float], tmp_path: Path, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    train_small(data, tmp_path, HALF, saving(tmp_path), before)
    lines = train_small(data, tmp_path, saving(tmp_path), after)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert values(lines) == pytest.approx(uninterrupted, rel=1e-5)
    assert lines[-1]["training/consumed_samples"] == 80


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({**layout(2, 1, 2), **ZERO}, id="zero"),
        pytest.param(DROPOUT, id="dropout"),
        pytest.param({**DROPOUT, "transformer_architecture.dropout_stream": "per_rank"}, id="per-rank-dropout"),
        pytest.param({**layout(2, 1, 1), **ZERO, **BFLOAT16}, id="bfloat16"),
        pytest.param(FLOAT16, id="float16"),
        pytest.param({**layout(1, 2, 1), **IN_BACKGROUND}, id="saved-in-background"),
        pytest.param({"trainer.dataloader_num_workers": 2}, id="workers"),
    ],
)
def test_the_same_layout_goes_on_bit_for_bit(data: Path, tmp_path: Path, settings: Mapping[str, Any]) -> None:
    without = train_small(data, tmp_path / "without", settings, saving(tmp_path / "without"))
    train_small(data, tmp_path, HALF, saving(tmp_path), settings)
    lines = train_small(data, tmp_path, saving(tmp_path), settings)
    for name in ("training/loss", "training/global_grad_norm", "training/loss_scale", "training/consumed_samples"):
        assert values(lines, name) == values(without, name)
    assert [line["step"] for line in lines] == list(range(1, 11))


def test_zero_can_be_switched_off(data: Path, uninterrupted: list[float], tmp_path: Path) -> None:
    settings = {**saving(tmp_path), **layout(2, 1, 1)}
    train_small(data, tmp_path, HALF, settings, ZERO)
    assert values(train_small(data, tmp_path, settings)) == pytest.approx(uninterrupted, rel=1e-5)
    logs = [(tmp_path / f"rank_{rank}.log").read_text() for rank in (0, 1)]
    assert [log.count("of how and where it runs: ") for log in logs] == [1, 0]
    assert "optimizer.zero: True in the checkpoint, False now" in logs[0]
    assert [log.count("resuming with another setting: trainer.train_iterations: 5") for log in logs] == [1, 0]


def test_a_killed_run_goes_on_from_its_last_checkpoint(data: Path, uninterrupted: list[float], tmp_path: Path) -> None:
    settings = {**layout(2, 1, 1), **saving(tmp_path), "trainer.save_interval": 3}
    sections = nested(settings_of(data, tmp_path, settings))
    ends = run_world(train_as_rank, 2, sections, environment={"SCALING_FAULT": "step.after_backward@1:9=kill"})
    assert ends[1].exit_code == -9
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 9))
    lines = train_small(data, tmp_path, settings)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert values(lines) == pytest.approx(uninterrupted, rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((1, 1, 1), "usr1"),
        ((1, 2, 1), "term"),
        pytest.param((1, 1, 1), "term", marks=pytest.mark.slow),
        pytest.param((1, 2, 1), "usr1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_rank_saves_and_ends_all(
    data: Path, uninterrupted: list[float], tmp_path: Path, sizes: tuple[int, int, int], name: str
) -> None:
    settings = {**saving(tmp_path), **layout(*sizes)}
    fault = f"step.after_backward@{prod(sizes) - 1}:4={name}"
    assert statuses(data, tmp_path, settings, faults=fault) == {ExitStatus.PREEMPTED}
    found = state(tmp_path)
    assert (found["state"], found["step"], found["exit_status"]) == ("pre-empted", 4, 75)
    assert found["reason"].endswith(", saved")
    assert (tmp_path / "checkpoints" / "latest").read_text() == "global_step4"
    assert values(train_small(data, tmp_path, settings)) == pytest.approx(uninterrupted, rel=1e-5)
    assert state(tmp_path)["state"] == "finished"


def test_a_finished_run_has_nothing_to_do(data: Path, tmp_path: Path) -> None:
    lines = train_small(data, tmp_path, HALF, saving(tmp_path))
    saved = (tmp_path / "checkpoints" / "global_step5" / "manifest.json").stat().st_mtime_ns
    assert train_small(data, tmp_path, HALF, saving(tmp_path)) == lines
    assert (tmp_path / "checkpoints" / "global_step5" / "manifest.json").stat().st_mtime_ns == saved


def test_the_folder_of_another_run_is_refused_with_everything_that_differs(
    data: Path, half: Path, tmp_path: Path
) -> None:
    other = build_corpus(tmp_path / "other", seed=5)
    changes = {"trainer.seed": 7, "transformer_architecture.hidden_size": 64, **layout(1, 2, 1)}
    with pytest.raises(ConfigError) as caught:
        train_small(other, tmp_path, changes, {"trainer.save_dir": str(half)})
    assert caught.value.exit_status == ExitStatus.USER_INPUT
    assert {problem.path for problem in caught.value.problems} == {
        "trainer.seed",
        "transformer_architecture.hidden_size",
        "fingerprints.data",
    }
    assert "trainer.accept_changes" in str(caught.value)
    assert "the data is not what the checkpoint's run used: its digest is" in str(caught.value)
    assert f"data.data_prefixes.0 was {str(data)!r}, is {str(other)!r}" in str(caught.value)
    found = state(tmp_path)
    assert (found["state"], found["exit_status"]) == ("failed", 2)


def train_impatiently(rank: int, world_size: int, sections: dict[str, Any]) -> ExitStatus:
    """Be one rank of a run that does not wait for another to leave its folder."""
    with mock.patch.object(running, "locked", partial(locked, patience=0.0)):
        return train_as_rank(rank, world_size, sections)


@pytest.mark.parametrize(("shared", "setting"), [("checkpoints", "trainer.save_dir"), ("", "logger.log_dir")])
def test_a_second_run_in_the_same_folders_leaves_the_log_of_the_first_alone(
    data: Path, tmp_path: Path, shared: str, setting: str
) -> None:
    train_small(data, tmp_path, HALF, saving(tmp_path))
    logged = ("config.yml", "run_state.json", "run.json", "metrics.jsonl")
    before = {name: (tmp_path / name).read_bytes() for name in logged}
    ranks_log = (tmp_path / "rank_0.log").read_bytes()
    settings = settings_of(data, tmp_path, saving(tmp_path), layout(2, 1, 1))
    with another_process(tmp_path / shared), pytest.raises(StorageError, match=f"written by another run.*{setting}"):
        run_distributed(train_impatiently, 2, nested(settings))
    assert {name: (tmp_path / name).read_bytes() for name in logged} == before
    assert (tmp_path / "rank_0.log").read_bytes().startswith(ranks_log)


def test_a_change_can_be_accepted_by_name(data: Path, half: Path, tmp_path: Path) -> None:
    changes = {"trainer.seed": 7, "trainer.accept_changes": ["trainer.seed"]}
    assert [line["step"] for line in train_small(data, tmp_path, loading(half), changes)] == [6, 7, 8, 9, 10]


def test_a_run_can_start_from_another_runs_checkpoint(
    data: Path, half: Path, uninterrupted: list[float], tmp_path: Path
) -> None:
    lines = train_small(data, tmp_path, loading(half), saving(tmp_path))
    assert [line["step"] for line in lines] == [6, 7, 8, 9, 10]
    assert values(lines) == uninterrupted[5:]
    assert (tmp_path / "checkpoints" / "global_step10").is_dir()
    assert not (half / "global_step10").exists()
    again = train_small(data, tmp_path, loading(half), saving(tmp_path), {"trainer.train_iterations": 11})
    assert [line["step"] for line in again] == [6, 7, 8, 9, 10, 11]  # its own checkpoint comes first


def test_without_context_counting_starts_anew(
    data: Path, half: Path, uninterrupted: list[float], tmp_path: Path
) -> None:
    lines = train_small(data, tmp_path, loading(half, load_context=False, train_iterations=3))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["training/consumed_samples"] == 8
    assert lines[0]["training/loss"] < uninterrupted[0] - 0.1  # the first samples again, with trained weights


def test_weights_may_be_trained_on_other_data_with_another_seed(half: Path, tmp_path: Path) -> None:
    other = build_corpus(tmp_path / "other", seed=5)
    changes = {"trainer.seed": 7, **loading(half, load_context=False, load_optimizer_states=False, train_iterations=2)}
    assert [line["step"] for line in train_small(other, tmp_path, changes)] == [1, 2]


def test_without_optimizer_states_only_the_weights_are_loaded(
    data: Path, half: Path, uninterrupted: list[float], tmp_path: Path
) -> None:
    cut = {**layout(2, 1, 1), **ZERO}
    lines = train_small(data, tmp_path, loading(half, load_optimizer_states=False, train_iterations=7), cut)
    assert [line["step"] for line in lines] == [6, 7]
    assert lines[0]["training/loss"] == pytest.approx(uninterrupted[5], rel=1e-5)
    assert lines[1]["training/loss"] != pytest.approx(uninterrupted[6], rel=1e-5)


def test_a_checkpoint_can_be_demanded(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint in save_dir .*assert_checkpoint_loaded"):
        train_small(data, tmp_path, loading(tmp_path / "empty", assert_checkpoint_loaded=True))


def test_a_damaged_checkpoint_is_not_buried_by_a_new_start(data: Path, tmp_path: Path) -> None:
    train_small(data, tmp_path, {"trainer.train_iterations": 1}, saving(tmp_path))
    (tmp_path / "checkpoints" / "global_step1" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint in .* is complete and intact.*move them out of"):
        train_small(data, tmp_path, saving(tmp_path))


def test_missing_and_unexpected_parameters_have_to_be_allowed(data: Path, half: Path, tmp_path: Path) -> None:
    accept = {**OTHER_PARAMETERS, "trainer.accept_changes": list(OTHER_PARAMETERS)}
    weights_only = loading(half, load_optimizer_states=False, train_iterations=6)
    with pytest.raises(CheckpointError) as caught:
        train_small(data, tmp_path, accept, weights_only)
    text = str(caught.value)
    assert "6 missing in the checkpoint (trainer.allowed_missing_keys_in_checkpoint)" in text
    assert "6 in the checkpoint but not in the model (trainer.allowed_unexpected_keys_in_checkpoint)" in text
    assert "layers.1.self_attention.norm_query.weight [8]" in text
    assert "layers.3.mlp.siglu_weight.weight [64, 32]" in text
    allowed = {
        "trainer.allowed_missing_keys_in_checkpoint": [r"\.norm_(query|key)\."],
        "trainer.allowed_unexpected_keys_in_checkpoint": [r"siglu"],
    }
    assert [line["step"] for line in train_small(data, tmp_path, accept, weights_only, allowed)] == [6]


def test_an_ignored_parameter_keeps_its_initial_value(data: Path, half: Path, tmp_path: Path) -> None:
    patterns = [r"embedding"]
    ignored = loading(half, ignore_keys_in_checkpoint=patterns, load_optimizer_states=False, train_iterations=6)
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint .*\n.*embedding"):
        train_small(data, tmp_path, ignored)
    lines = train_small(data, tmp_path, ignored, {"trainer.allowed_missing_keys_in_checkpoint": patterns})
    assert lines[0]["training/loss"] > 4.0  # another embedding is as good as none


@pytest.mark.parametrize(
    "point",
    [
        "save.mid_data",
        pytest.param("save.before_data", marks=pytest.mark.slow),
        pytest.param("save.before_manifest", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_costs_one_checkpoint_and_not_the_run(
    data: Path, uninterrupted: list[float], tmp_path: Path, point: str
) -> None:
    settings = {**saving(tmp_path), "trainer.save_interval": 4}
    lines = train_small(data, tmp_path, settings, faults=f"{point}:1=enospc")
    assert values(lines) == uninterrupted
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["global_step10", "global_step8", "latest"]


def test_a_disk_that_is_full_at_the_end_ends_the_run_with_an_error(data: Path, tmp_path: Path) -> None:
    settings = {**saving(tmp_path), **layout(2, 1, 1), "trainer.save_interval": 4}
    with pytest.raises(StorageError, match=r"step 10 was not saved: .*No space left"):
        train_small(data, tmp_path, settings, faults="save.before_data@0:3=enospc")
    assert (tmp_path / "checkpoints" / "latest").read_text() == "global_step8"
    assert state(tmp_path)["exit_status"] == ExitStatus.STORAGE
