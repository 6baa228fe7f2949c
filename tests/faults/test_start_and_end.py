"""The two ends of a run: the tokenizer it leaves beside its checkpoints, and ranks that finish at different times."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from unittest import mock

import pytest

from scaling.core import ExitStatus, LaunchContext
from scaling.core.training.data import TrainingData
from scaling.transformer import train as program
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.tokenizer import TOKENIZER_FILE
from tests.distributed import run_distributed
from tests.faults.engine import Scene, Settings, launch, make_source, nested
from tests.faults.storage_cases import can_mount, fill, small_disk
from tests.reference.worlds import connected
from tests.transformer.small import build_corpus


@pytest.mark.parametrize("left", [b"", b'{"version": "1.0", "trunc'])
def test_a_half_written_tokenizer_is_replaced(left: bytes, scene: Scene) -> None:
    scene.resume_from(4)
    (scene.save_dir / TOKENIZER_FILE).write_bytes(left)
    assert scene.finish().status == 0
    assert (scene.save_dir / TOKENIZER_FILE).read_bytes() == scene.source.tokenizer.read_bytes()


def test_a_refused_run_leaves_the_tokenizer_of_the_checkpoints(scene: Scene) -> None:
    scene.resume_from(4)
    other = make_source(scene.folder / "other", ["Something else entirely."] * 20)
    scene.watch()
    end = launch({**other.settings(), "trainer.save_dir": str(scene.save_dir)})
    assert end.status == 2
    assert "fingerprints.tokenizer: " in end.message
    assert scene.written() == []


def test_token_ids_do_not_change_their_meaning_unnoticed(scene: Scene) -> None:
    """Data of other programs do not say which tokenizer they were made with."""
    corpus = build_corpus(scene.folder / "ids")
    settings = {**scene.settings(), "data.data_prefixes": [str(corpus)], "data.eod_token_id": 0}
    assert launch({**settings, "trainer.train_iterations": 1}).status == 0
    other = make_source(scene.folder / "other", ["Something else entirely."] * 20)
    end = launch({**settings, "transformer_architecture.vocab_file": str(other.tokenizer)})
    assert end.status == 2
    assert "fingerprints.tokenizer: " in end.message
    accepted = {"trainer.accept_changes": ["fingerprints.tokenizer"]}
    assert launch({**settings, "transformer_architecture.vocab_file": str(other.tokenizer), **accepted}).status == 0
    assert (scene.save_dir / TOKENIZER_FILE).read_bytes() == other.tokenizer.read_bytes()


@pytest.mark.skipif(not can_mount(), reason="only root can make a small disk")
def test_a_disk_too_full_for_the_tokenizer_is_named_and_nothing_half_written_stays(scene: Scene) -> None:
    with small_disk(scene.save_dir, "64k"):
        filler = fill(scene.save_dir)
        end = scene.run()
        assert end.status == 74
        assert "leaving the tokenizer in trainer.save_dir" in end.message
        assert "No space left" in end.message
        assert list(scene.save_dir.iterdir()) == [filler]


def last_word(rank: int, world_size: int) -> str:
    """Rank 0, which serves the store, is through long before rank 1 reads from it."""
    with connected(data=2) as topology:
        assert topology.store is not None
        if rank == 0:
            topology.store.set("verdict", "saved")
            return ""
        time.sleep(0.5)
        return topology.store.get("verdict").decode()


def test_a_rank_that_is_through_waits_for_those_that_still_read_its_store() -> None:
    assert run_distributed(last_word, 2) == ["", "saved"]


def asked_late(rank: int, world_size: int, settings: Settings) -> ExitStatus:
    """Be one rank of a run that rank 1 is asked to leave; rank 0 is asked when it is done, and rank 1 still reads."""
    close: Callable[[TrainingData], None] = TrainingData.close

    def closing(data: TrainingData) -> None:
        close(data)
        if rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            time.sleep(0.2)

    with mock.patch.object(TrainingData, "close", closing):
        return program.train(TransformerConfig.from_dict(nested(settings)), LaunchContext.from_environment())


def test_a_signal_that_comes_late_does_not_end_a_rank_that_others_still_need(scene: Scene) -> None:
    scene.save_dir.mkdir()
    ended = run_distributed(
        asked_late, 2, scene.settings(), environment={"SCALING_FAULT": "step.before_forward@1:3=term"}
    )
    assert ended == [ExitStatus.PREEMPTED, ExitStatus.PREEMPTED]
    # Where the machine is busy, the step is given up before all ranks have had their part in it.
    assert scene.step(3).exists() or scene.step(2).exists()
