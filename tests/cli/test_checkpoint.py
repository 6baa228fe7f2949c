"""`scaling checkpoint` works on folders alone: no processes, no GPU, nothing executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from scaling.cli import checkpoint
from scaling.cli.checkpoint import app
from scaling.core.checkpoint.base import BaseReference
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import Retention
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.search import find_newest
from scaling.core.checkpoint.verify import read_manifest
from scaling.core.errors import CheckpointError, ExitStatus, ScalingError, StorageError
from scaling.transformer import TransformerArchitectureConfig, TransformerInferenceModule
from scaling.transformer.data.tokenizer import train_tokenizer
from tests.core.checkpoint.virtual import Cut, global_state, one, save_cut

MODEL = "rank_00000_model_000.safetensors"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def status(result: Result) -> int:
    """Return the status the command ends with once `main` has turned the library's errors into theirs."""
    error = result.exception
    return int(error.exit_status) if isinstance(error, ScalingError) else result.exit_code


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    options: dict[str, Any] = {"information": {"scaling": "9.9"}, "retention": Retention(keep_optimizer_last=2)}
    for step in (9, 10, 11):
        save_cut(tmp_path, step, Cut(data=2, zero=True), global_state(step), **options)
    return tmp_path


def test_ls_tells_what_is_there(runs: Path) -> None:
    (runs / "global_step11" / MODEL).unlink()
    (runs / "global_step12").mkdir()
    result = run("ls", runs)
    assert status(result) == 0
    rows = {line.split()[1]: line.split() for line in result.output.splitlines() if "│" in line}
    assert list(rows) == ["12", "11", "10", "9"]
    assert {"complete", "2,080", "no", "9.9"} <= set(rows["9"])
    assert {"complete", "2,080", "yes", "9.9"} <= set(rows["10"])
    assert "damaged" in rows["11"]
    assert "unusable" in rows["12"]
    assert f"{runs / 'global_step11'}: {MODEL} is missing or not a regular file (holds layers.0" in result.output
    assert f"{runs / 'global_step12'} is not a complete checkpoint" in result.output


def test_ls_prints_json_for_programs(runs: Path) -> None:
    rows = json.loads(run("ls", runs, "--json").output)
    assert [(row["step"], row["state"], row["optimizer"]) for row in rows] == [
        (11, "complete", True),
        (10, "complete", True),
        (9, "complete", False),
    ]
    assert rows[0]["bytes"] > 0
    (only,) = json.loads(run("ls", runs / "global_step9", "--json").output)
    assert only["step"] == 9


def test_what_was_trained_on_a_base_names_it(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tuned = tmp_path_factory.mktemp("tuned")
    reference = BaseReference.to(find_newest(runs / "global_step10").require())
    for step, base in ((1, None), (2, reference.as_dict()), (3, {"path": 7})):
        Checkpointer(tuned).save(step, [one("gain", torch.full((2,), float(step)))], {"base": base})
    for line in run("ls", tuned).output.splitlines()[-1], run("verify", tuned / "global_step2").output:
        assert f"trained on the base {runs.resolve()}/global_step10" in line
    assert [row["base"] for row in json.loads(run("ls", tuned, "--json").output)] == [None, reference.as_dict(), None]
    assert f"(step 10, digest of its weights {reference.short_digest}), which is there" in run("verify", tuned).output
    assert "trained without a base" in run("verify", tuned).output
    assert "base.path is 7, not text" in run("verify", tuned).output
    (runs / "global_step10").rename(runs / "gone")
    result = run("verify", tuned)
    assert "which is not there; trainer.load_dir can name another place" in result.output
    assert status(result) == 0
    difference = run("diff", tuned / "global_step1", tuned / "global_step2").output
    assert f"base: None and {reference.as_dict()!r}" in difference
    assert "1 of 1 tensors differ" in difference


def test_verify_reads_every_byte(runs: Path) -> None:
    result = run("verify", runs)
    assert status(result) == 0
    assert result.output.count("intact") == 3
    victim = runs / "global_step10" / MODEL
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    (runs / "global_step9" / "notes.txt").write_text("mine")
    (runs / "global_step11" / "evil.pt").write_text("mine")
    result = run("verify", runs)
    assert status(result) == ExitStatus.USER_INPUT
    assert (
        f"{runs / 'global_step10'}: DAMAGED\n  {MODEL}: the data of layers.3.norm.weight [0:8] is damaged"
        in result.output
    )
    assert "notes.txt does not belong to the checkpoint and is ignored" in result.output
    assert "evil.pt does not belong to the checkpoint and may hold code" in result.output
    assert status(run("verify", runs / "global_step9")) == 0
    (runs / "global_step9" / "manifest.json").unlink()
    assert status(run("verify", runs / "global_step9")) == ExitStatus.USER_INPUT


def test_verify_looks_at_the_name_of_the_folder_too(runs: Path) -> None:
    (runs / "global_step11").rename(runs / "global_step13")
    result = run("verify", runs / "global_step13")
    assert status(result) == ExitStatus.USER_INPUT
    assert "the folder is named global_step13, but it holds step 11" in result.output


def test_what_verify_cannot_read_is_not_called_damaged(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> Manifest:
        if folder.name == "global_step10":
            raise PermissionError(13, "Permission denied", str(folder))
        return read_manifest(folder)

    monkeypatch.setattr(checkpoint, "read_manifest", refused)
    result = run("verify", runs)
    assert status(result) == ExitStatus.STORAGE
    assert f"{runs / 'global_step10'}: CANNOT BE READ" in result.output
    assert "DAMAGED" not in result.output
    (runs / "global_step9" / MODEL).unlink()
    assert status(run("verify", runs)) == ExitStatus.USER_INPUT


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_a_place_without_checkpoints_is_the_users_mistake(command: str, tmp_path: Path) -> None:
    for place, message in ((tmp_path, "there is no checkpoint in"), (tmp_path / "nowhere", "is not a folder")):
        result = run(command, place)
        assert status(result) == ExitStatus.USER_INPUT
        assert message in str(result.exception)


def test_a_folder_that_is_nearly_right_is_found_and_said(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_folder = tmp_path_factory.mktemp("run")
    (run_folder / "checkpoints").symlink_to(runs)
    for arguments in (("verify", run_folder), ("diff", run_folder, runs / "latest")):
        result = run(*arguments)
        assert status(result) == 0
        assert f"note: taking {run_folder / 'checkpoints'}" in result.output
    result = run("cast", runs / "global_step8", run_folder / "cast", "--dtype", "float32")
    assert status(result) == ExitStatus.USER_INPUT
    assert "global_step11, global_step10, global_step9" in str(result.exception)


def test_a_folder_that_cannot_be_read_is_a_storage_error(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    for arguments in (("ls", runs), ("diff", runs, runs)):
        result = run(*arguments)
        assert status(result) == ExitStatus.STORAGE
        assert isinstance(result.exception, StorageError)


def test_diff_compares_tensor_by_tensor_across_layouts(runs: Path, tmp_path: Path) -> None:
    state = global_state(11)
    state["layers.0.norm.weight"][3] += 0.5
    save_cut(tmp_path / "other", 11, Cut(pipe=2, model=2), state)
    result = run("diff", runs, tmp_path / "other")
    assert status(result) == 0
    (row,) = [line for line in result.output.splitlines() if "layers.0.norm.weight" in line]
    assert [cell.strip() for cell in row.split("│")][2:4] == ["1", "0.5"]
    assert "1 of 49 tensors differ" in result.output
    assert run("diff", runs, tmp_path / "other", "--exit-code").exit_code == 1
    same = run("diff", runs / "global_step10", runs / "global_step10", "--exit-code", "--all")
    assert same.exit_code == 0
    assert same.output.count("equal") == 49


def test_diff_names_scalars_and_missing_tensors(runs: Path) -> None:
    result = run("diff", runs / "global_step9", runs / "global_step10")
    assert "step: 9 and 10" in result.output
    assert f"{runs / 'global_step9'} holds no optimizer states, {runs / 'global_step10'} does" in result.output
    assert "optimizer." not in result.output  # one line instead of one for each of them
    assert "only in the second, [8]" in run("diff", runs / "global_step9", runs / "global_step10", "--all").output
    result = run("diff", runs / "global_step9", runs / "nowhere")
    assert status(result) == ExitStatus.USER_INPUT
    assert isinstance(result.exception, CheckpointError)


def test_diff_shows_names_in_full_and_scalars_that_only_one_has(tmp_path: Path) -> None:
    name = "layers.7." + "a_rather_long_name_of_a_module." * 4 + "weight"
    for step, scalars in ((1, {}), (2, {"seed": 3})):
        Checkpointer(tmp_path).save(step, [one(name, torch.full((1,), float(step)))], scalars)
    result = run("diff", tmp_path / "global_step1", tmp_path / "global_step2")
    shown = "".join(line.split("│")[1].strip() for line in result.output.splitlines() if "│" in line)
    assert shown == name
    assert "seed: nothing and 3" in result.output


def test_verify_says_nothing_but_what_it_found(runs: Path) -> None:
    lines = run("verify", runs).output.splitlines()
    assert all("intact" in line for line in lines)
    assert len(lines) == 3


def test_cast_writes_a_checkpoint_in_another_precision(runs: Path, tmp_path: Path) -> None:
    result = run("cast", runs, tmp_path / "half", "--dtype", "bfloat16")
    assert status(result) == 0
    assert result.output == f"wrote {tmp_path / 'half' / 'global_step11'}\n"
    manifest = find_newest(tmp_path / "half").require().manifest
    assert {entry.dtype for entry in manifest.tensors.values()} == {"BF16"}
    assert status(run("cast", runs, tmp_path / "half", "--dtype", "bfloat16")) == ExitStatus.USER_INPUT
    assert status(run("cast", runs, tmp_path / "half", "--dtype", "int8")) == ExitStatus.USER_INPUT


def test_a_folder_whose_checkpoints_have_another_tokenizer_is_not_cast_into(runs: Path, tmp_path: Path) -> None:
    own, other = (train_tokenizer([text], 270) for text in ("one text", "and another"))
    own.save(runs / "vocab.json")
    target = tmp_path / "target"
    assert status(run("cast", runs / "global_step10", target, "--dtype", "float64")) == 0
    other.save(target / "vocab.json")
    result = run("cast", runs / "global_step11", target, "--dtype", "float64")
    assert status(result) == ExitStatus.USER_INPUT
    assert "holds checkpoints of another tokenizer" in str(result.exception)
    assert own.sha256 in str(result.exception)
    assert other.sha256 in str(result.exception)
    assert not (target / "global_step11").exists()
    assert (target / "vocab.json").read_text() == other.to_str()


def test_a_tokenizer_that_no_checkpoint_belongs_to_is_replaced(runs: Path, tmp_path: Path) -> None:
    own, other = (train_tokenizer([text], 270) for text in ("one text", "and another"))
    own.save(runs / "vocab.json")
    other.save(tmp_path / "target" / "vocab.json")
    assert status(run("cast", runs, tmp_path / "target", "--dtype", "float64")) == 0
    assert (tmp_path / "target" / "vocab.json").read_text() == own.to_str()


def test_casting_onto_a_full_disk_is_a_storage_error(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_FAULT", "save.mid_data:*=enospc")
    result = run("cast", runs, tmp_path / "half", "--dtype", "float16")
    assert status(result) == ExitStatus.STORAGE
    assert "tries again" not in str(result.exception), "nothing does"
    assert not find_newest(tmp_path / "half").found


def test_a_target_that_cannot_be_looked_at_is_a_storage_error(runs: Path, tmp_path: Path) -> None:
    assert status(run("cast", runs, tmp_path / ("x" * 300), "--dtype", "float16")) == ExitStatus.STORAGE


def test_a_layerwise_checkpoint_is_imported(tmp_path: Path) -> None:
    old = tmp_path / "global_step3"
    old.mkdir()
    torch.save({"norm.weight": torch.ones(2)}, old / "model_state_layer_0_LayerNormWrapper.pt")
    assert "checkpoint of the predecessor" in str(run("ls", old).output)
    result = run("import", old, tmp_path / "new")
    assert status(result) == 0
    assert list(find_newest(tmp_path / "new").require().manifest.tensors) == ["layers.0.norm.weight"]
    assert status(run("import", old, tmp_path / "newer", "--step", 7)) == 0
    assert (tmp_path / "newer" / "global_step7").is_dir()
    result = run("import", tmp_path / "nowhere", tmp_path / "new")
    assert status(result) == ExitStatus.USER_INPUT
    assert "nowhere is not a folder" in str(result.exception)


def test_what_was_cast_or_imported_can_be_generated_from(tmp_path: Path) -> None:
    architecture = {
        "vocab_size": 300,
        "hidden_size": 8,
        "num_layers": 1,
        "num_attention_heads": 2,
        "sequence_length": 8,
    }
    model = TransformerInferenceModule(TransformerArchitectureConfig.from_dict(architecture))
    old = tmp_path / "old" / "global_step3"
    old.mkdir(parents=True)
    for layer in range(3):
        held = [tensor for tensor in model.module.global_tensors() if tensor.key.startswith(f"layers.{layer}.")]
        names = {tensor.key.removeprefix(f"layers.{layer}."): tensor.parts[0][1].detach().clone() for tensor in held}
        torch.save(names, old / f"model_state_layer_{layer}_Layer.pt")
    (old / "config.yml").write_text(json.dumps({"transformer_architecture": architecture}))
    train_tokenizer(["some text to learn from"], 300).save(old.parent / "vocab.json")
    assert status(run("import", old, tmp_path / "new")) == 0
    assert status(run("cast", tmp_path / "new", tmp_path / "wide", "--dtype", "float64")) == 0
    for folder in ("new", "wide"):
        loaded = TransformerInferenceModule.from_checkpoint(tmp_path / folder)
        assert loaded.tokenizer is not None
        assert torch.equal(loaded.logits(torch.tensor([[1, 2]])), model.logits(torch.tensor([[1, 2]])))
    (old / "config.yml").write_text("{lora: 5}")
    result = run("import", old, tmp_path / "bare")
    assert status(result) == 0
    assert "can be trained on, but not generated from, without a configuration" in result.output


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (2**52, "4096.0 TiB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert checkpoint._bytes(count) == text
