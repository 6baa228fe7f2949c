"""Damaged, foreign and dangerous folders are refused with the reason, and the older checkpoint loads."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.checkpoint import verify
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.disk import open_regular
from scaling.core.checkpoint.header import read_header
from scaling.core.checkpoint.manifest import FileEntry, Manifest
from scaling.core.checkpoint.search import find_newest, is_step_folder
from scaling.core.checkpoint.verify import read_manifest, share_of, strange_files
from scaling.core.errors import CheckpointError, StorageError
from tests.core.checkpoint.virtual import (
    Cut,
    RankState,
    global_state,
    loads_exactly,
    on_ranks,
    outcomes_on_ranks,
    save_cut,
)

MODEL = "rank_00000_model_000.safetensors"
OPTIMIZER = "rank_00001_optimizer_000.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    for step in (1, 2):
        save_cut(directory, step, Cut(data=2, zero=True), global_state(step))
    return directory


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def rejection(directory: Path) -> str:
    """Return why the second step is rejected, having checked that loading falls back to the first."""
    search = find_newest(directory)
    assert search.require().step == 1
    assert loads_exactly(directory, Cut(model=2), global_state(1))
    (rejected,) = search.rejected
    assert rejected.path == directory / "global_step2"
    return rejected.reason


def test_what_a_check_finds_in_a_manifest_is_a_reason_to_pass_the_folder_over(original: Path) -> None:
    def check(manifest: Manifest) -> list[str]:
        return ["not this one", "nor ever"] if manifest.step == 2 else []

    for search in on_ranks(2, lambda ranks: Checkpointer(None, communicator=ranks).find(original, check=check)):
        assert search.require().step == 1
        assert [(one.path.name, one.reason) for one in search.rejected] == [("global_step2", "not this one; nor ever")]


def test_one_flipped_bit_anywhere_is_noticed_and_named(original: Path, tmp_path: Path) -> None:
    source = original / "global_step2"
    manifest = read_manifest(source)
    contents = manifest.keys_of_files()
    slots = {}
    for name in manifest.files:
        with (source / name).open("rb") as file:
            slots[name] = read_header(file, manifest.files[name].bytes).slots
    folder = Path(shutil.copytree(source, tmp_path / "global_step2"))
    names = sorted(path.name for path in folder.iterdir())
    sizes = [(folder / name).stat().st_size for name in names]
    generator = random.Random(0)
    for _ in range(100):
        name = generator.choices(names, sizes)[0]
        data = bytearray((folder / name).read_bytes())
        position = generator.randrange(len(data))
        data[position] ^= 1 << generator.randrange(8)
        (folder / name).write_bytes(data)
        reason = find_newest(folder).rejected[0].reason
        assert name in reason, (name, position)
        if name != "manifest.json":
            hit = [key for key, slot in slots[name].items() if slot.start <= position < slot.stop]
            if hit:
                tensor, _, part = contents[name][hit[0]]
                assert reason == f"{name}: the data of {tensor} {part.box} is damaged"
            else:  # the header, with which all of its tensors are lost
                assert any(tensor in reason for tensor, _, _ in contents[name].values()), (name, position, reason)
        data[position] = (source / name).read_bytes()[position]
        (folder / name).write_bytes(data)
    assert find_newest(folder).found is not None


def truncated(folder: Path) -> None:
    os.truncate(folder / MODEL, (folder / MODEL).stat().st_size - 1)


def zero_tail(folder: Path) -> None:
    size = (folder / MODEL).stat().st_size
    os.truncate(folder / MODEL, size - 64)
    os.truncate(folder / MODEL, size)


def swapped(folder: Path) -> None:
    shutil.copy(folder.parent / "global_step1" / MODEL, folder / MODEL)


def exchanged(folder: Path) -> None:
    (folder / OPTIMIZER).rename(folder / "x")
    (folder / "rank_00000_optimizer_000.safetensors").rename(folder / OPTIMIZER)
    (folder / "x").rename(folder / "rank_00000_optimizer_000.safetensors")


def linked(folder: Path) -> None:
    (folder / MODEL).rename(folder.parent / "elsewhere")
    (folder / MODEL).symlink_to(folder.parent / "elsewhere")


def older_manifest(folder: Path) -> None:
    shutil.copy(folder.parent / "global_step1" / "manifest.json", folder)


def renamed(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "global_step1", folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, rf"{MODEL} has \d+ bytes, the manifest says \d+ \(holds layers.0.down.weight"),
        (zero_tail, rf"{MODEL}: the data of layers.3.* is damaged"),
        (lambda folder: (folder / OPTIMIZER).unlink(), rf"{OPTIMIZER} is missing.*\(holds optimizer.exp_avg."),
        (lambda folder: (folder / OPTIMIZER).write_bytes(b""), rf"{OPTIMIZER} has 0 bytes, the manifest says"),
        (swapped, rf"{MODEL}: the data of layers.0.up.weight .* is damaged"),
        (exchanged, "the manifest says"),
        (linked, rf"{MODEL} is missing or not a regular file"),
        (older_manifest, "it holds step 1"),
        (renamed, "the folder is named global_step2, but it holds step 1"),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "is not a complete checkpoint: .*is missing",
        ),
        (lambda folder: (folder / "manifest.json").write_bytes(b""), "manifest.json is damaged"),
        (lambda folder: os.truncate(folder / "manifest.json", 3000), "manifest.json is damaged"),
    ],
)
def test_damage_is_rejected_with_the_reason_and_the_older_checkpoint_loads(
    damage: Callable[[Path], None], message: str, copy: Path
) -> None:
    damage(copy / "global_step2")
    assert re.search(message, rejection(copy))


def test_files_that_do_not_belong_are_ignored_where_they_are_harmless(copy: Path) -> None:
    folder = copy / "global_step2"
    shutil.copy(folder / MODEL, folder / "extra.safetensors")
    (folder / "notes.json").write_text("{}")
    (folder / "README.md").write_text("hello")
    (folder / "link.json").symlink_to(copy / "latest")
    (folder / "tokenizer").mkdir()
    assert find_newest(copy).require().step == 2
    names = ["README.md", "extra.safetensors", "link.json", "notes.json", "tokenizer"]
    assert strange_files(folder, read_manifest(folder)) == ([], names)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("name", ["evil.pt", ".metadata", "evil.pkl", "model_state_layer_0_X.pt", "evil", "evil.json"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_with_a_pickle_is_refused_and_nothing_is_executed(
    name: str, zipped: bool, copy: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    with (copy / "global_step2" / name).open("wb") as file:
        if zipped:
            torch.save(Bomb(canary), file)
        else:
            pickle.dump(Bomb(canary), file)
    assert f"{name} does not belong to the checkpoint and may hold code" in rejection(copy)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_is_refused_at_any_depth(protocol: int, copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = copy / "global_step2" / "sub" / "deeper" / "evil"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(Bomb(canary), protocol))
    assert "sub/deeper/evil does not belong to the checkpoint and may hold code" in rejection(copy)
    assert not canary.exists()


def test_a_suffix_that_stands_for_code_is_refused_within_folders(copy: Path) -> None:
    (copy / "global_step2" / "sub").mkdir()
    (copy / "global_step2" / "sub" / "x.pt").write_text("")
    assert "sub/x.pt does not belong to the checkpoint and may hold code" in rejection(copy)


def test_links_within_a_folder_are_not_followed(copy: Path) -> None:
    sub = copy / "global_step2" / "sub"
    sub.mkdir()
    (sub / "around").symlink_to(copy)
    (copy / "evil.pt").write_text("")
    assert find_newest(copy).require().step == 2


def test_more_strange_files_than_can_be_looked_at_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_STRANGE", 4)
    (copy / "global_step2" / "sub").mkdir()
    for number in range(3):
        (copy / "global_step2" / "sub" / f"{number}.txt").write_text("")
    assert find_newest(copy).require().step == 2
    (copy / "global_step2" / "sub" / "3.txt").write_text("")
    assert "holds more than 4 files that do not belong to the checkpoint" in rejection(copy)


def test_a_pickle_in_place_of_a_data_file_is_refused_and_not_executed(copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = copy / "global_step2" / MODEL
    size = path.stat().st_size
    torch.save(Bomb(canary), path)
    assert zipfile.is_zipfile(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])
    assert "header claims" in rejection(copy)
    assert not canary.exists()


def test_a_folder_of_the_predecessor_is_pointed_to_the_import(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model_state_layer_0_EmbeddingInput.pt")
    with pytest.raises(CheckpointError, match="checkpoint of the predecessor; convert it"):
        find_newest(tmp_path).require()


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(1, 9))
def test_each_file_has_exactly_one_reader_and_the_bytes_are_spread(sizes: list[int], ranks: int) -> None:
    table = {f"f{index}.safetensors": FileEntry(size, "0" * 64) for index, size in enumerate(sizes)}
    manifest = Manifest(0, table, {})
    shares = [share_of(manifest, rank, ranks) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(table)
    loads = [sum(table[name].bytes for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_a_step_folder_is_known_by_its_name_or_by_its_manifest(copy: Path) -> None:
    (copy / "global_step2").rename(copy / "kept")
    (copy / "global_step7").mkdir()
    found = {folder.name for folder in (copy, *copy.iterdir()) if is_step_folder(folder)}
    assert found == {"kept", "global_step1", "global_step7"}


def test_large_files_are_dealt_out_first() -> None:
    table = {f"f{index}.safetensors": FileEntry(size, "0" * 64) for index, size in enumerate([1, 1, 4, 1, 1])}
    assert share_of(Manifest(0, table, {}), 0, 2) == ["f2.safetensors"]


def test_a_directory_that_cannot_be_listed_is_a_storage_error_on_all_ranks(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    outcomes = outcomes_on_ranks(2, lambda ranks: find_newest(copy, ranks))
    assert [type(outcome) for outcome in outcomes] == [StorageError] * 2
    assert "Permission denied" in str(outcomes[1])


def test_a_file_that_cannot_be_read_is_a_reason_to_fall_back(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> object:
        if path.parent.name == "global_step2" and path.suffix == ".safetensors":
            raise OSError(5, "Input/output error", str(path))
        return open_regular(path)

    monkeypatch.setattr(verify, "open_regular", broken)
    assert "Input/output error" in rejection(copy)


def test_a_check_that_is_broken_off_leaves_the_rest_of_the_file_unread(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def slowly(digests: verify._Digests, file: object, start: int, stop: int) -> str:
        time.sleep(0.01)
        read.append(start)
        return ""

    def interrupted(futures: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify._Digests, "_digest", slowly)
    monkeypatch.setattr(verify, "wait", interrupted)
    manifest = verify.read_manifest(original / "global_step2")
    monkeypatch.setattr(verify._Digests, "_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        verify.file_problems(original / "global_step2", manifest, manifest.files)
    assert len(read) < sum(len(tensor.parts) for tensor in manifest.tensors.values()) / 2


def test_loading_after_damage_in_between_reports_it(copy: Path) -> None:
    found = Checkpointer(None).find(copy).require()
    os.truncate(found.path / MODEL, 100)
    with pytest.raises(Exception, match=r"has 100 bytes, the manifest says"):
        Checkpointer(None).load(found, RankState(Cut(), 0).tensors)
