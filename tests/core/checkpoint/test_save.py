"""A save is complete or not there: on every rank, with a full disk, and after an exception."""

from __future__ import annotations

import json
import logging
import os
import resource
from pathlib import Path

import pytest
import torch

from scaling.core.boxes import Box, GlobalTensor
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator
from scaling.core.errors import CheckpointError, StorageError
from scaling.core.storage.json_values import Json
from tests.core.checkpoint.virtual import (
    Cut,
    RankState,
    global_state,
    loads_exactly,
    on_ranks,
    one,
    outcomes_on_ranks,
    row,
    save_cut,
)
from tests.distributed import run_distributed


def test_a_folder_holds_safetensors_and_json_only_and_latest_names_it(tmp_path: Path) -> None:
    save_cut(tmp_path, 12, Cut(data=2, zero=True), global_state())
    assert sorted(os.listdir(tmp_path)) == ["global_step12", "latest"]
    assert (tmp_path / "latest").read_text() == "global_step12"
    assert sorted(os.listdir(tmp_path / "global_step12")) == [
        "manifest.json",
        "rank_00000_model_000.safetensors",
        "rank_00000_optimizer_000.safetensors",
        "rank_00001_optimizer_000.safetensors",
    ]


def test_scalars_come_back_as_rank_0_gave_them(tmp_path: Path) -> None:
    nested: Json = {"a": [1, None, True]}
    scalars: dict[str, Json] = {"step": 3, "rate": 0.1 + 0.2, "state": 2**70, "text": "é\ud800", "nested": nested}
    saved = Checkpointer(tmp_path, information={"layout": "1x1x1"})
    saved.save(3, [one("w", torch.ones(2))], scalars)
    loaded = Checkpointer(None).load(tmp_path, [one("w", torch.zeros(2))])
    assert loaded.scalars == scalars
    assert loaded.step == 3
    information = json.loads((tmp_path / "global_step3/manifest.json").read_text())["information"]
    assert information["layout"] == "1x1x1"
    assert {"saved_at", "scaling", "torch", "python", "ranks"} <= set(information)


def test_scalars_that_json_cannot_hold_are_refused_on_all_ranks(tmp_path: Path) -> None:
    for bad in (float("nan"), object()):
        outcomes = outcomes_on_ranks(
            2,
            lambda ranks, bad=bad: Checkpointer(tmp_path, communicator=ranks).save(1, [], {"loss": bad}),  # type: ignore[misc]
        )
        assert [type(outcome) for outcome in outcomes] == [CheckpointError] * 2
        assert "the scalars cannot be stored as JSON" in str(outcomes[1])
    assert os.listdir(tmp_path) == []


def test_large_tensors_are_cut_so_that_files_stay_bounded(tmp_path: Path) -> None:
    state = global_state()
    save_cut(tmp_path, 1, Cut(data=2, zero=True), state, max_file_bytes=600)
    files = list((tmp_path / "global_step1").glob("*.safetensors"))
    manifest = Checkpointer(None).find(tmp_path).require().manifest
    headers = {path.name: int.from_bytes(path.read_bytes()[:8], "little") + 8 for path in files}
    assert len(files) > 10
    assert all(manifest.files[name].bytes - header <= 600 for name, header in headers.items())
    assert loads_exactly(tmp_path, Cut(model=2), state)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([[row(4, 0, 4)], [row(4, 0, 4)]], r"w \[4\] has parts that overlap"),
        ([[row(4, 0, 3)], [row(4, 2, 4)]], r"overlap: \[0:3\] in rank_00000"),
        ([[row(4, 0, 4), row(4, 0, 4)], []], r"w \[4\] has parts that overlap"),
        ([[row(4, 0, 2)], []], r"w \[4\] has 2 elements that no part holds, first those at \[2:4\]"),
        ([[row(4, 0, 4, owned=False)], []], r"w \[4\] is on rank 0, but no rank owns it"),
        ([[row(4, 0, 4)], [row(5, 0, 5, owned=False)]], r"w is \[5\] on rank 1"),
        ([[row(4, 0, 2)], [row(6, 2, 4)]], r"w is F32 \[6\] on rank 1"),
        ([[row(4, 2, 5)], []], r"the box \[2:5\] is not within the tensor's shape \[4\]"),
        ([[GlobalTensor("w", (4,), [(Box((0,), (4,)), torch.zeros(3))])], []], r"\[0:4\] comes with a tensor of shape"),
        ([[one("w\n", torch.zeros(1))], []], "cannot be the name of a tensor"),
        ([[one("w", torch.zeros(2)), one("w", torch.zeros(3))], []], r"w is given as \[2\] and as \[3\]"),
        ([[one("w", torch.zeros(2, dtype=torch.complex128))], []], "complex128 cannot be stored"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused_on_all_ranks(
    tensors: list[list[GlobalTensor]], message: str, tmp_path: Path
) -> None:
    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(tmp_path, communicator=ranks).save(1, tensors[ranks.rank], {})
    )
    for outcome in outcomes:
        with pytest.raises(CheckpointError, match=message):
            raise outcome
    assert os.listdir(tmp_path) == []


def test_an_exception_while_collecting_tensors_is_voted_on(tmp_path: Path) -> None:
    def tensors(rank: int) -> list[GlobalTensor]:
        return [one("w", torch.zeros(2), owned=rank == 0)]

    def broken(rank: int):  # type: ignore[no-untyped-def]
        yield from tensors(rank)
        if rank == 1:
            raise ZeroDivisionError("no tensor today")

    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(tmp_path, communicator=ranks).save(1, broken(ranks.rank), {})
    )
    assert all(
        isinstance(outcome, StorageError) and "rank 1: ZeroDivisionError" in str(outcome) for outcome in outcomes
    )


POINTS = ["before_data", "mid_data", "after_data", "before_manifest", "mid_manifest", "before_rename"]


@pytest.mark.parametrize("action", ["enospc", "eio", "raise"])
@pytest.mark.parametrize(
    ("point", "rank"), [*((point, 0) for point in POINTS), ("before_data", 1), ("mid_data", 1), ("after_data", 1)]
)
def test_a_failing_rank_fails_the_save_on_all_and_leaves_the_previous_one_alone(
    action: str, point: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, old, new = Cut(data=2, zero=True), global_state(1), global_state(2)
    save_cut(tmp_path, 1, cut, old)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def twice(ranks: Communicator) -> tuple[Exception | None, Path | None]:
        held = RankState(cut, ranks.rank).fill(new)
        checkpointer = Checkpointer(tmp_path, communicator=ranks)
        first = None
        try:
            checkpointer.save(2, held.tensors, {})
        except StorageError as error:
            first = error
            ranks.broadcast(None)
            if ranks.rank == 0:
                assert sorted(path.name for path in tmp_path.rglob("*")) == before
            assert checkpointer.failures == 1
        again = checkpointer.save(2, held.tensors, {})
        assert checkpointer.failures == 0
        return first, again

    monkeypatch.setenv("SCALING_FAULT", f"save.{point}@{rank}=" + action)
    for error, path in on_ranks(2, twice):
        assert isinstance(error, StorageError)
        assert "step 2 was not saved" in str(error)
        assert "injected" in str(error)
        assert "tries again" not in str(error)  # that is for the caller to decide
        assert path == tmp_path / "global_step2"
    assert loads_exactly(tmp_path / "global_step1", Cut(), old)
    assert loads_exactly(tmp_path, Cut(), new)


@pytest.mark.parametrize("point", ["after_rename", "during_retention"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_after_the_rename_does_not_unsave(
    point: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCALING_FAULT", f"save.{point}@{rank}=eio")
    with caplog.at_level(logging.WARNING):
        assert save_cut(tmp_path, 1, Cut(data=2), global_state()) == [tmp_path / "global_step1"] * 2
    assert "injected" in caplog.text
    assert loads_exactly(tmp_path, Cut(), global_state())


def test_a_directory_that_cannot_be_made_is_a_storage_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcomes = outcomes_on_ranks(
        2, lambda ranks: Checkpointer(tmp_path / "file" / "runs", communicator=ranks).save(1, [], {})
    )
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 2
    assert "rank 0, 1" in str(outcomes[1])
    assert (tmp_path / "file").read_text() == "in the way"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_cut(tmp_path, 5, Cut(data=2, zero=True), global_state(seed))
    assert loads_exactly(tmp_path, Cut(), global_state(2))
    assert sorted(os.listdir(tmp_path)) == ["global_step5", "latest"]


def save_with_small_files(rank: int, world_size: int, directory: Path) -> tuple[str, list[str]]:
    """Save under a limit that the operating system sets on the size of files, then without it."""
    checkpointer = Checkpointer(directory)
    tensors = [one("w", torch.ones(100_000))]
    checkpointer.save(1, tensors, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        checkpointer.save(2, tensors, {})
    except StorageError as error:
        return str(error), sorted(os.listdir(directory))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return "saved", []


def test_a_write_that_the_system_refuses_half_way_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    ((message, left),) = run_distributed(save_with_small_files, 1, tmp_path)
    assert "File too large" in message
    assert left == ["global_step1", "latest"]
    assert Checkpointer(tmp_path).find().require().step == 1
