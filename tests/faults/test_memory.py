"""Loading a checkpoint takes little memory beyond what the model itself occupies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from scaling.core import LaunchContext, Trainer
from scaling.transformer import train as program
from scaling.transformer.config.root import TransformerConfig
from tests.distributed import run_distributed
from tests.faults.engine import TWO, Settings, Source, launch, layout, nested

LARGER: Settings = {
    "transformer_architecture.vocab_size": 8000,
    "transformer_architecture.hidden_size": 512,
    "trainer.train_iterations": 1,
    "trainer.save_interval": None,
}


def anonymous_memory() -> int:
    """Return what this process has of its own: without the pages of libraries, which come in as they are first used."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak_of_resuming(rank: int, world_size: int, settings: Settings) -> tuple[int, int]:
    """Train on from a checkpoint; return the bytes of this rank's shard, and how far loading went above the model."""
    measured: list[tuple[int, int]] = []
    resume: Callable[[Trainer], bool] = Trainer.resume

    def watched(trainer: Trainer) -> bool:
        shard = sum(view.nbytes for tensor in trainer.learner.global_tensors() for _, view in tensor.parts)
        before = anonymous_memory()
        peak, done = [before], threading.Event()

        def watch() -> None:
            while not done.wait(0.0005):
                peak[0] = max(peak[0], anonymous_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return resume(trainer)
        finally:
            done.set()
            watcher.join()
            measured.append((shard, peak[0] - before))

    with mock.patch.object(Trainer, "resume", watched):
        program.train(TransformerConfig.from_dict(nested(settings)), LaunchContext.from_environment())
    return measured[0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells how much memory is in use")
@pytest.mark.parametrize("settings", [TWO, layout(model=2)], ids=["same layout", "other layout"])
def test_loading_peaks_at_no_more_than_the_shard_and_a_quarter(settings: Settings, saved: Path, source: Source) -> None:
    changes = {"trainer.load_dir": str(saved), "trainer.assert_checkpoint_loaded": True}
    found = run_distributed(peak_of_resuming, 2, source.settings(LARGER, settings, changes))
    for shard, peak in found:
        assert shard > 50 * 2**20
        assert peak <= 1.25 * shard


@pytest.fixture(scope="module")
def saved(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("larger")
    assert launch(source.settings(LARGER, TWO, {"trainer.save_dir": str(folder)})).status == 0
    return folder
