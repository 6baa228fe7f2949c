"""The folder protocol: leftovers of kills, renames that fail, and which checkpoints retention keeps."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.boxes import GlobalTensor, whole
from scaling.core.checkpoint import folders
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import Retention, list_steps, retain, step_of, sweep
from scaling.core.errors import ConfigError, StorageError
from scaling.core.storage.writing import write_durably


def save(directory: Path, *steps: int) -> None:
    tensors = {"w": torch.arange(3.0), "optimizer.exp_avg.w": torch.ones(3)}
    for step in steps:
        table = [GlobalTensor(key, (3,), [(whole((3,)), tensor)]) for key, tensor in tensors.items()]
        Checkpointer(directory).save(step, table, {"step": step})


def steps(directory: Path) -> list[int | None]:
    return [step_of(path) for path in list_steps(directory)]


def test_steps_are_ordered_by_number_and_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("global_step10", "global_step9", "global_step100", "global_step007", "global_step", "global_step5x"):
        (tmp_path / name).mkdir()
    for name in (".tmp-global_step11-ab", ".trash-global_step12-ab", "logs", "global_step-1"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [100, 10, 9]
    assert list_steps(tmp_path / "absent") == []


def test_leftovers_are_swept_and_a_replaced_step_whose_successor_never_came_is_brought_back(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "global_step1").rename(tmp_path / ".old-global_step1-0a")
    shutil.copytree(tmp_path / "global_step2", tmp_path / ".old-global_step2-0b")
    (tmp_path / ".tmp-global_step3-0c").mkdir()
    (tmp_path / ".trash-global_step0-0d").mkdir()
    (tmp_path / ".tmp-latest-0e").write_text("global_step9")
    assert steps(tmp_path) == [2, 1]
    assert Checkpointer(None).find(tmp_path / ".old-global_step1-0a").require().step == 1
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["global_step1", "global_step2", "latest"]


@pytest.mark.parametrize("replaces", [False, True])
def test_a_crash_of_the_machine_finds_what_the_name_promises(
    replaces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in a folder is on the disk before it gets its name, and the name before anything older goes."""
    if replaces:
        save(tmp_path, 1)
    rename, events = Path.rename, list[str]()
    monkeypatch.setattr(folders, "sync_folder", lambda folder: events.append(f"sync {folder.name.split('-')[0]}"))
    monkeypatch.setattr(folders, "remove", lambda path: events.append(f"remove {path.name.split('-')[0]}"))

    def noted(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name.split('-')[0]}")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", noted)
    save(tmp_path, 1)
    expected = ["sync .tmp", "rename .tmp", f"sync {tmp_path.name}"]
    if replaces:
        expected = ["sync .tmp", "rename global_step1", "rename .tmp", f"sync {tmp_path.name}", "remove .old"]
    assert events == expected


def test_a_rename_that_fails_puts_the_older_save_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp-"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(Exception, match="Input/output error"):
        save(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["global_step1", "latest"]
    assert Checkpointer(None).find(tmp_path).require().step == 1


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), [6, 5, 4, 3, 2, 1]),
        (Retention(keep_last=1), [6]),
        (Retention(keep_last=3), [6, 5, 4]),
        (Retention(keep_last=1, keep_every=2), [6, 4, 2]),
        (Retention(keep_last=100), [6, 5, 4, 3, 2, 1]),
    ],
)
def test_retention_keeps_the_newest_and_every_mth(retention: Retention, kept: list[int], tmp_path: Path) -> None:
    save(tmp_path, *range(1, 7))
    retain(tmp_path / "global_step6", retention)
    assert steps(tmp_path) == kept
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 6))
    os.truncate(tmp_path / "global_step4/rank_00000_model_000.safetensors", 5)
    (tmp_path / "global_step3/manifest.json").unlink()
    retain(tmp_path / "global_step5", Retention(keep_last=2))
    assert steps(tmp_path) == [5, 4, 3, 2]


def test_later_steps_are_never_deleted(tmp_path: Path) -> None:
    """A run that went back to an older step must not delete what it was just told to keep."""
    save(tmp_path, 10, 20, 15)
    retain(tmp_path / "global_step15", Retention(keep_last=1))
    assert steps(tmp_path) == [20, 15]


def test_optimizer_states_of_old_checkpoints_go_and_the_rest_stays_intact(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    retain(tmp_path / "global_step3", Retention(keep_optimizer_last=2))
    retain(tmp_path / "global_step3", Retention(keep_optimizer_last=2))
    assert [len(list((tmp_path / f"global_step{step}").iterdir())) for step in (1, 2, 3)] == [2, 3, 3]
    for step in (1, 2, 3):
        manifest = Checkpointer(None).find(tmp_path / f"global_step{step}").require().manifest
        assert sorted(manifest.tensors) == (["w"] if step == 1 else ["optimizer.exp_avg.w", "w"])
        assert manifest.scalars == {"step": step}


def test_dropping_optimizer_states_can_be_interrupted_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "global_step1"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        folders.drop_optimizer(folder)
    (folder / ".tmp-manifest.json").write_text("half")
    assert Checkpointer(None).find(tmp_path).require().manifest.removed == ("optimizer.",)
    folders.drop_optimizer(folder)
    assert sorted(os.listdir(folder)) == ["manifest.json", "rank_00000_model_000.safetensors"]


def test_a_link_to_a_checkpoint_is_read_and_only_the_link_is_deleted(tmp_path: Path) -> None:
    save(tmp_path / "archive", 1)
    save(tmp_path / "run", 2)
    (tmp_path / "run" / "global_step1").symlink_to(tmp_path / "archive" / "global_step1")
    assert steps(tmp_path / "run") == [2, 1]
    retain(tmp_path / "run" / "global_step2", Retention(keep_optimizer_last=1))
    assert len(list((tmp_path / "archive" / "global_step1").iterdir())) == 3
    retain(tmp_path / "run" / "global_step2", Retention(keep_last=1))
    assert steps(tmp_path / "run") == [2]
    assert steps(tmp_path / "archive") == [1]


def test_a_save_whose_files_were_removed_meanwhile_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cleaner, or a second run that takes the folder for a leftover."""
    save(tmp_path, 1)

    def meanwhile(path: Path, data: bytes, **options: Any) -> None:
        write_durably(path, data, **options)
        (path.parent / "rank_00000_model_000.safetensors").unlink(missing_ok=True)

    monkeypatch.setattr(folders, "write_durably", meanwhile)
    with pytest.raises(StorageError, match=r"rank_00000_model_000.safetensors is missing .*does something else write"):
        save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["global_step1", "latest"]


@pytest.mark.parametrize("name", ["keep_last", "keep_every", "keep_optimizer_last"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} \(0\) must be at least 1"):
        Retention(**{name: 0})


def test_the_hint_is_never_relied_on(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for text in ("", "global_step1", "../../etc", "global_step99"):
        (tmp_path / "latest").write_text(text)
        assert Checkpointer(None).find(tmp_path).require().step == 2


def test_the_manifest_is_one_line_per_tensor(tmp_path: Path) -> None:
    save(tmp_path, 1)
    lines = (tmp_path / "global_step1/manifest.json").read_text().splitlines()
    assert [line for line in lines if line.startswith(' "w": {"shape":[3],"dtype":"F32"')]
    assert json.loads("\n".join(lines))["step"] == 1
