"""A training leaves its tokenizer beside its checkpoints, where inference looks for it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaling.core import StorageError, Topology
from scaling.transformer.data.tokenizer import TOKENIZER_FILE
from scaling.transformer.train import _keep_tokenizer


def keep(vocab_file: Path | None, save_dir: Path | None) -> None:
    config: Any = SimpleNamespace(
        transformer_architecture=SimpleNamespace(vocab_file=vocab_file), trainer=SimpleNamespace(save_dir=save_dir)
    )
    _keep_tokenizer(config, Topology.single())


def test_the_tokenizer_lies_beside_the_checkpoints_and_is_replaced_by_another_only(tmp_path: Path) -> None:
    given, save_dir = tmp_path / "vocabulary.json", tmp_path / "not" / "there"
    kept = save_dir / TOKENIZER_FILE
    given.write_text("one")
    keep(given, save_dir)
    assert kept.read_text() == "one"
    os.utime(kept, ns=(1, 1))
    keep(given, save_dir)
    assert kept.stat().st_mtime_ns == 1
    given.write_text("two")
    keep(given, save_dir)
    assert kept.read_text() == "two"


def test_without_a_tokenizer_or_a_folder_nothing_is_left(tmp_path: Path) -> None:
    keep(None, tmp_path)
    keep(tmp_path / "absent.json", None)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_cannot_be_left_is_an_error_on_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"leaving the tokenizer in trainer\.save_dir"):
        keep(tmp_path / "absent.json", tmp_path)
