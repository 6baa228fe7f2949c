"""What goes while it is read is passed over for what is the newest then; what is wrong for good is said at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from scaling.core.checkpoint import newest, search
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.communicator import Communicator
from scaling.core.checkpoint.folders import drop_optimizer
from scaling.core.checkpoint.newest import load_newest
from scaling.core.checkpoint.reader import CheckpointReader
from scaling.core.checkpoint.search import StoredCheckpoint
from scaling.core.checkpoint.verify import file_problems
from scaling.core.errors import CheckpointError, ConfigError
from tests.core.checkpoint.virtual import on_ranks, one, outcomes_on_ranks


def save(directory: Path, step: int) -> Path:
    tensors = [one(name, torch.full((4,), float(step))) for name in ("a", "b", "optimizer.exp_avg.a")]
    path = Checkpointer(directory, max_file_bytes=16).save(step, tensors, {})
    assert path is not None
    return path


def read(stored: StoredCheckpoint) -> float:
    with CheckpointReader(stored) as reader:
        return float(reader.read("a")[0] + reader.read("b")[0])


def leave_none(directory: Path, then: int | None = None) -> None:
    """Remove what is there, as retention does, and save another one before if there is to be one."""
    old = list(directory.glob("global_step*"))
    if then is not None:
        save(directory, then)
    for path in old:
        shutil.rmtree(path)


def test_a_folder_that_goes_before_it_is_read_is_passed_over_for_the_newest_then(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = []

    def load(stored: StoredCheckpoint) -> float:
        found.append(stored.step)
        if stored.step < 4:
            leave_none(tmp_path, then=stored.step + 1)
        return read(stored)

    assert load_newest(tmp_path, load) == 8.0
    assert found == [1, 2, 3, 4]


def go_in_the_middle(rank: int, world_size: int) -> None:
    """Remove a folder between two reads. The arguments are those of a check of a bug."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, 1)
        save(folder, 2)

        def load(stored: StoredCheckpoint) -> float:
            with CheckpointReader(stored) as reader:
                first = float(reader.read("a")[0])
                if stored.step == 2:
                    shutil.rmtree(stored.path)
                return first + float(reader.read("b")[0])

        assert newest.load_newest(folder, load) == 2.0


def test_a_folder_that_goes_in_the_middle_of_reading_is_passed_over() -> None:
    go_in_the_middle(0, 1)


def test_what_is_open_can_be_read_whatever_becomes_of_the_folder(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def load(stored: StoredCheckpoint) -> float:
        with CheckpointReader(stored) as reader:
            reader.open_all()
            leave_none(tmp_path)
            return float(reader.read("a")[0] + reader.read("b")[0])

    assert load_newest(tmp_path, load) == 2.0


def test_folders_that_go_while_they_are_verified_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    verify, calls = file_problems, []

    def slowly(folder: Path, *arguments: object) -> list[str]:
        calls.append(folder)
        if len(calls) == 1:
            leave_none(tmp_path, then=3)
        return verify(folder, *arguments)  # type: ignore[arg-type]  # as they come

    monkeypatch.setattr(search, "file_problems", slowly)
    assert load_newest(tmp_path, read) == 6.0
    assert caplog.messages == []


def test_optimizer_states_that_go_meanwhile_do_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path, 1)

    def load(stored: StoredCheckpoint) -> float:
        drop_optimizer(path)
        return read(stored)

    assert load_newest(tmp_path, load) == 2.0


def test_one_step_folder_that_goes_is_said_to_have_gone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)

    def load(stored: StoredCheckpoint) -> float:
        shutil.rmtree(path)
        return read(stored)

    with pytest.raises(CheckpointError, match=r"global_step2 was removed while it was read; name the folder"):
        load_newest(path, load)


@pytest.mark.parametrize("error", [CheckpointError("does not fit"), ConfigError("is wrong"), OSError("no room")])
def test_what_is_wrong_with_a_folder_that_stays_is_said_at_once(tmp_path: Path, error: Exception) -> None:
    save(tmp_path, 1)
    calls = []

    def load(stored: StoredCheckpoint) -> float:
        calls.append(stored)
        raise error

    with pytest.raises(type(error)) as raised:
        load_newest(tmp_path, load)
    assert raised.value is error
    assert len(calls) == 1


def test_without_any_there_is_the_usual_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_newest(tmp_path, read)


def test_who_is_always_too_slow_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "ATTEMPTS", 3)
    save(tmp_path, 1)

    def load(stored: StoredCheckpoint) -> float:
        leave_none(tmp_path, then=stored.step + 1)
        return read(stored)

    with pytest.raises(CheckpointError, match=r"was removed while it was read, 3 times; keep more of them"):
        load_newest(tmp_path, load)


def failing_on(ranks: Communicator, action: Callable[[StoredCheckpoint], None]) -> Callable[[StoredCheckpoint], float]:
    """Return a way of loading in which rank 1 alone comes upon what `action` has done."""

    def load(stored: StoredCheckpoint) -> float:
        if ranks.rank == 1:
            action(stored)
            return read(stored)
        return 2.0 * stored.step

    return load


def test_all_ranks_pass_over_what_one_of_them_misses(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def go(stored: StoredCheckpoint) -> None:
        if stored.step == 2:
            shutil.rmtree(stored.path)

    assert on_ranks(2, lambda ranks: load_newest(tmp_path, failing_on(ranks, go), ranks)) == [2.0, 2.0]

    def fail(stored: StoredCheckpoint) -> None:
        raise CheckpointError("does not fit")

    outcomes = outcomes_on_ranks(2, lambda ranks: load_newest(tmp_path, failing_on(ranks, fail), ranks))
    assert [str(outcome) for outcome in outcomes] == [
        f"{tmp_path / 'global_step1'} could not be loaded: rank 1: does not fit",
        "does not fit",
    ]
