"""A checkpoint can be opened while its run trains, saves each step and keeps two."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaling.core.checkpoint import newest
from scaling.core.checkpoint.folders import list_steps, step_of
from scaling.core.checkpoint.search import Search, find_newest
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.processes import wait_until
from tests.transformer.small import build_corpus, command_environment, settings_of, write_config


@contextmanager
def training(folder: Path) -> Iterator[Path]:
    """Train in a process of its own for as long as the block lasts; yield the folder of checkpoints."""
    settings = {
        "trainer.save_dir": str(folder / "checkpoints"),
        "trainer.save_interval": 1,
        "trainer.keep_last_checkpoints": 2,
        "trainer.train_iterations": 10**6,
    }
    config = write_config(folder / "config.yml", settings_of(build_corpus(folder / "data"), folder / "run", settings))
    command = [sys.executable, "-m", "scaling.cli.main", "train", str(config)]
    with subprocess.Popen(
        command,
        env=command_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: bool(list_steps(folder / "checkpoints")), "nothing was saved")
            yield folder / "checkpoints"
            assert process.poll() is None
        finally:
            process.terminate()


@pytest.mark.slow
def test_fifty_times_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def slowly(*arguments: Any, **options: Any) -> Search:
        searches.append(find_newest(*arguments, **options))
        # Up to about as long as two checkpoints of so small a model last: many are gone when they are read.
        time.sleep(0.04 * (len(searches) % 7))
        return searches[-1]

    monkeypatch.setattr(newest, "find_newest", slowly)
    with training(tmp_path) as checkpoints:
        for _ in range(50):
            TransformerInferenceModule.from_checkpoint(checkpoints)
        last = step_of(list_steps(checkpoints)[0])
    assert last is not None
    assert last > 50
    assert len(searches) > 50
