"""Save in one layout and load in another, find the newest intact checkpoint, and write in the background."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from scaling.core.boxes import Box
from scaling.core.checkpoint import save as saving
from scaling.core.checkpoint import search as searching
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.share import write_share
from scaling.core.checkpoint.verify import file_problems
from scaling.core.errors import CheckpointError, StorageError
from tests.core.checkpoint.virtual import (
    Cut,
    RankState,
    global_state,
    loads_exactly,
    on_ranks,
    one,
    part,
    save_cut,
)

CUTS = [
    Cut(),
    Cut(data=2),
    Cut(data=2, zero=True),
    Cut(data=3, zero=True),
    Cut(model=2),
    Cut(pipe=2),
    Cut(pipe=4, model=2),
    Cut(pipe=2, data=2, model=2, zero=True),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_what_any_layout_saves_every_layout_loads_bit_for_bit(cut: Cut, tmp_path: Path) -> None:
    state = global_state(3)
    paths = save_cut(tmp_path, 7, cut, state)
    assert set(paths) == {tmp_path / "global_step7"}
    for other in CUTS:
        assert loads_exactly(tmp_path, other, state), other


def test_half_precision_weights_and_their_masters_keep_their_types(tmp_path: Path) -> None:
    state = global_state(5, dtype=torch.bfloat16)
    save_cut(tmp_path, 1, Cut(data=2, model=2, zero=True), state)
    assert loads_exactly(tmp_path, Cut(pipe=2), state)


def test_without_a_save_dir_nothing_is_saved(tmp_path: Path) -> None:
    checkpointer = Checkpointer(None)
    assert checkpointer.save(1, [one("w", torch.ones(2))], {}) is None
    assert checkpointer.find().found is None


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_cut(tmp_path, 1, Cut(data=2, zero=True), global_state(1))
    save_cut(tmp_path, 2, Cut(data=2, zero=True), global_state(2))
    victim = tmp_path / "global_step2" / "rank_00001_optimizer_000.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    (tmp_path / "global_step3").mkdir()

    def search(ranks: Communicator) -> tuple[int, list[tuple[str, str]]]:
        found = Checkpointer(tmp_path, communicator=ranks).find()
        return found.require().step, [(rejected.path.name, rejected.reason) for rejected in found.rejected]

    results = on_ranks(3, search)
    assert results[0] == results[1] == results[2]
    step, rejected = results[0]
    assert step == 1
    assert [name for name, _ in rejected] == ["global_step3", "global_step2"]
    assert "not a complete checkpoint" in rejected[0][1]
    assert (
        "rank_00001_optimizer_000.safetensors: the data of optimizer.exp_avg_sq.layers.3.norm.weight" in rejected[1][1]
    )
    assert "rejected the checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match="is complete and intact"):
        Checkpointer(None).load(tmp_path / "global_step2", [])


def test_who_wants_the_weights_alone_reads_no_optimizer_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cut(tmp_path, 1, Cut(data=2, zero=True), global_state(1))
    read: list[str] = []

    def noted(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
        read.extend(names := list(names))
        return file_problems(folder, manifest, names)

    monkeypatch.setattr(searching, "file_problems", noted)
    for found in on_ranks(2, lambda ranks: Checkpointer(tmp_path, communicator=ranks).find(weights_only=True)):
        assert found.require().step == 1
    assert read == ["rank_00000_model_000.safetensors"]
    victim = tmp_path / "global_step1" / "rank_00001_optimizer_000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    (rejected,) = Checkpointer(tmp_path).find(weights_only=True).rejected
    assert "rank_00001_optimizer_000.safetensors has" in rejected.reason


def test_an_absent_directory_holds_no_checkpoint(tmp_path: Path) -> None:
    search = Checkpointer(tmp_path / "nowhere").find()
    assert (search.found, search.rejected) == (None, ())
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        search.require()


@pytest.mark.parametrize("cut", [Cut(), Cut(data=2, zero=True)], ids=str)
def test_a_save_in_the_background_keeps_the_values_of_the_moment(cut: Cut, tmp_path: Path) -> None:
    states = [global_state(seed) for seed in range(3)]

    def rank(ranks: Communicator) -> None:
        held = RankState(cut, ranks.rank)
        checkpointer = Checkpointer(tmp_path, communicator=ranks, asynchronous=True)
        for step, state in enumerate(states):
            held.fill(state)
            assert checkpointer.save(step, held.tensors, {}) is None
            held.fill({name: torch.full_like(tensor, 9) for name, tensor in state.items()})
        report = checkpointer.wait()
        assert report is not None
        assert report.path == tmp_path / "global_step2"
        assert checkpointer.wait() is None

    on_ranks(cut.world_size, rank)
    for step, state in enumerate(states):
        assert loads_exactly(tmp_path / f"global_step{step}", Cut(model=2), state)


def test_training_goes_on_while_a_save_is_written_and_no_two_saves_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, release = 0, 0, threading.Event()

    def slow(*arguments: object) -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(60)
        time.sleep(0.05)
        running -= 1
        return write_share(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_share", slow)
    checkpointer = Checkpointer(tmp_path, asynchronous=True)
    checkpointer.save(1, [one("w", torch.ones(2))], {})
    assert not (tmp_path / "global_step1").exists()
    release.set()
    checkpointer.save(2, [one("w", torch.ones(2))], {})
    assert (tmp_path / "global_step1").exists()
    checkpointer.wait()
    assert (tmp_path / "global_step2").exists()
    assert most == 1


def test_a_failed_save_in_the_background_is_logged_counted_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:1=enospc,save.mid_data:2=raise")
    checkpointer = Checkpointer(tmp_path, asynchronous=True)
    tensors = [one("w", torch.ones(2))]
    checkpointer.save(1, tensors, {})
    checkpointer.save(2, tensors, {})
    assert "step 1 was not saved: rank 0: [Errno 28]" in caplog.text
    assert checkpointer.failures == 1
    with pytest.raises(StorageError, match="step 2 was not saved"):
        checkpointer.wait()
    assert checkpointer.failures == 2
    checkpointer.save(3, tensors, {})
    report = checkpointer.wait()
    assert report is not None
    assert (report.step, report.error, checkpointer.failures) == (3, None, 0)
    assert sorted(os.listdir(tmp_path)) == ["global_step3", "latest"]


def test_what_cannot_be_mended_is_raised_by_the_next_call(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, asynchronous=True)
    checkpointer.save(1, [part("w", (4,), Box((0,), (2,)))], {})
    with pytest.raises(CheckpointError, match="2 elements that no part holds"):
        checkpointer.save(2, [one("w", torch.ones(4))], {})


def test_old_checkpoints_are_deleted_as_asked(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=2, keep_every=4))
    for step in range(1, 8):
        checkpointer.save(step, [one("w", torch.ones(2))], {})
    assert sorted(os.listdir(tmp_path)) == ["global_step4", "global_step6", "global_step7", "latest"]
