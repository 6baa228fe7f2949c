"""Where a step begins follows from what a run has left, and what does not follow from it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.core.checkpoint.manifest import Manifest
from scaling.core.errors import ConfigError, StorageError
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.consumed import consumed_before


def run_of(size: int, folder: Path, **trainer: object) -> TransformerConfig:
    """The configuration of a run that takes `size` samples a step and leaves its traces in `folder`."""
    return TransformerConfig.from_dict(
        {
            "topology": {"micro_batch_size": size, "gradient_accumulation_steps": 1},
            "transformer_architecture": {"sequence_length": 8, "vocab_size": 100},
            "logger": {"log_dir": str(folder / "log")},
            "trainer": {"save_dir": str(folder / "saved"), **trainer},
        }
    )


def write_metrics(folder: Path, consumed: dict[int, int]) -> None:
    lines = [json.dumps({"step": step, "training/consumed_samples": count}) for step, count in consumed.items()]
    (folder / "log").mkdir(parents=True)
    (folder / "log" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "train']))


def save(directory: Path, consumed: dict[int, int]) -> None:
    for step, count in consumed.items():
        folder = directory / f"global_step{step}"
        folder.mkdir(parents=True)
        state = {"step": step, "consumed_samples": count}
        (folder / "manifest.json").write_bytes(Manifest(step, {}, {}, {"trainer": state}).encode())


def begins(config: TransformerConfig, step: int) -> int:
    """Where a step begins, proven."""
    beginning = consumed_before(config, step)
    assert beginning.assumption is None
    return beginning.consumed_samples


def test_there_is_no_step_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no step 0"):
        consumed_before(run_of(12, tmp_path), 0)


def test_of_a_run_that_has_left_nothing_the_batch_size_is_taken_to_be_what_it_always_was(tmp_path: Path) -> None:
    config = run_of(12, tmp_path)
    assert begins(config, 1) == 0
    beginning = consumed_before(config, 5)
    assert beginning.consumed_samples == 48
    assert "steps 1 to 4 consumed 12 samples each" in str(beginning.assumption)
    assert "that step 1 consumed 12" in str(consumed_before(config, 2).assumption)


def test_the_metrics_of_a_run_tell_where_a_step_begins(tmp_path: Path) -> None:
    write_metrics(tmp_path, {1: 4, 2: 8, 3: 20, 4: 32, 6: 56})
    config = run_of(12, tmp_path)
    assert [begins(config, step) for step in range(3, 8)] == [8, 20, 32, 44, 56]
    beginning = consumed_before(config, 9)
    assert beginning.consumed_samples == 80
    assert "steps 7 to 8 consumed 12" in str(beginning.assumption)


def test_without_metrics_checkpoints_tell_where_a_step_begins(tmp_path: Path) -> None:
    save(tmp_path / "saved", {3: 24, 6: 48, 9: 84})
    config = run_of(12, tmp_path)
    assert [begins(config, step) for step in (7, 8, 9, 10)] == [48, 60, 72, 84]
    assert [begins(run_of(8, tmp_path), step) for step in (1, 5)] == [0, 32]


def test_metrics_that_begin_at_a_resume_are_continued_backwards_by_checkpoints(tmp_path: Path) -> None:
    write_metrics(tmp_path, {7: 60, 8: 72, 9: 84})
    save(tmp_path / "saved", {6: 48, 9: 84})
    assert [begins(run_of(12, tmp_path), step) for step in (7, 8, 9)] == [48, 60, 72]
    assert begins(run_of(8, tmp_path), 4) == 24


def test_a_step_that_was_taken_with_another_batch_size_is_refused_with_what_is_known(tmp_path: Path) -> None:
    write_metrics(tmp_path, {1: 4, 2: 8, 3: 20, 5: 40})
    save(tmp_path / "saved", {8: 64})
    for size, step, known in (
        (12, 1, r"no sample before step 1, and 4 samples up to step 1 \(.*metrics\.jsonl\)"),
        (12, 2, r"4 samples up to step 1 \(.*\), and 8 samples up to step 2"),
        (12, 4, "20 samples up to step 3 .* and 40 samples up to step 5"),
        (12, 7, r"40 samples up to step 5 .*metrics\.jsonl.* and 64 samples up to step 8 \(.*global_step8\)"),
    ):
        with pytest.raises(ConfigError, match=rf"{known}.* takes {size} a step"):
            consumed_before(run_of(size, tmp_path), step)


def test_what_metrics_and_checkpoints_tell_differently_is_refused(tmp_path: Path) -> None:
    write_metrics(tmp_path, {1: 12, 2: 24})
    save(tmp_path / "saved", {2: 16})
    with pytest.raises(ConfigError, match=r"24 samples up to step 2 .* but also 16 samples .* not of one run"):
        consumed_before(run_of(12, tmp_path), 3)


def test_a_run_that_started_from_another_one_goes_on_counting_from_there(tmp_path: Path) -> None:
    save(tmp_path / "base", {2: 8, 4: 16})
    begun = run_of(12, tmp_path, load_dir=str(tmp_path / "base"))
    assert begins(begun, 5) == 16
    assert begins(run_of(12, tmp_path, load_dir=str(tmp_path / "base" / "global_step2")), 3) == 8
    anew = run_of(12, tmp_path, load_dir=str(tmp_path / "base"), load_context=False)
    assert consumed_before(anew, 5).consumed_samples == 48


@pytest.mark.parametrize("noted_in", ["metrics", "checkpoints"])
def test_what_the_other_run_did_after_it_was_left_does_not_count(noted_in: str, tmp_path: Path) -> None:
    save(tmp_path / "base", {2: 8, 4: 16, 6: 24})
    noted = {5: 28, 6: 40}
    if noted_in == "metrics":
        write_metrics(tmp_path, noted)
    else:
        save(tmp_path / "saved", noted)
    config = run_of(12, tmp_path, load_dir=str(tmp_path / "base"))
    assert [begins(config, step) for step in (5, 6, 7)] == [16, 28, 40]


def test_checkpoints_that_are_damaged_or_imported_tell_nothing(tmp_path: Path) -> None:
    save(tmp_path / "saved", {2: 8, 4: 16, 6: 24, 8: 32})
    (tmp_path / "saved" / "global_step4" / "manifest.json").write_bytes(b"damaged")
    (tmp_path / "saved" / "global_step6" / "manifest.json").write_bytes(Manifest(6, {}, {}, {}).encode())
    (tmp_path / "saved" / "global_step10").mkdir()
    assert begins(run_of(4, tmp_path), 6) == 20


def test_metrics_that_cannot_be_read_are_an_error_of_the_storage(tmp_path: Path) -> None:
    (tmp_path / "log" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be read"):
        consumed_before(run_of(12, tmp_path), 1)
