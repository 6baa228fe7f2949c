"""A fine-tuning loads what is frozen from its base, saves what it trains, and goes on from the two bit for bit."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core.boxes import GlobalTensor, whole
from scaling.core.checkpoint.base import BaseReference, glance_at_base
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import drop_optimizer
from scaling.core.checkpoint.search import find_newest
from scaling.core.checkpoint.verify import read_manifest
from scaling.core.errors import CheckpointError
from scaling.core.trainer.trainer import Trainer
from tests.core.trainer.regression import Points, make_trainer, weights
from tests.distributed import run_distributed, run_world
from tests.reference.worlds import connected

TUNES = (r"gain$", r"bias$")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The checkpoints of the run whose model is tuned, of steps 2 and 3."""
    make_trainer(train_iterations=3, save_dir=tmp_path / "base", save_interval=2)[0].fit()
    return tmp_path / "base"


def tuned(steps: int, save_dir: Path | None, **options: Any) -> Trainer:
    """Return a fine-tuning of the gains and biases that has run to a step."""
    trainer, _ = make_trainer(train_iterations=steps, save_dir=save_dir, tunes=TUNES, **options)
    trainer.fit()
    return trainer


def require_equal(a: Trainer, b: Trainer) -> None:
    for key, value in weights(a).items():
        assert torch.equal(value, weights(b)[key]), key
    held = [{tensor.key: tensor.parts[0][1] for tensor in one.learner.global_tensors()} for one in (a, b)]
    assert held[0].keys() == held[1].keys()
    assert all(torch.equal(value, held[1][key]) for key, value in held[0].items())


def test_what_is_frozen_is_loaded_from_the_base_and_not_saved(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _ = make_trainer(load_dir=base, save_dir=tmp_path / "tuned", tunes=TUNES)
    with caplog.at_level(logging.INFO):
        assert trainer.resume()
    assert (trainer.state.step, trainer.state.consumed_samples) == (0, 0)
    assert trainer.learner.optimizer.state()["updates"] == 0
    assert "2 trained tensors are new beside the base and start at their initial values: layers.0.gain" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    source, _ = make_trainer(load_dir=base)
    source.resume()
    start, of_base = weights(trainer), weights(source)
    assert all(torch.equal(start[name], value) for name, value in of_base.items())
    assert torch.equal(start["layers.1.gain"], of_base["layers.1.weight"].norm(dim=1))
    trainer.fit()
    after = weights(trainer)
    assert torch.equal(after["layers.0.weight"], of_base["layers.0.weight"])
    assert not torch.equal(after["layers.0.bias"], of_base["layers.0.bias"])
    manifest = read_manifest(tmp_path / "tuned" / "global_step4")
    names = [f"layers.{index}.{name}" for index in range(2) for name in ("bias", "gain")]
    moments = [f"optimizer.{slot}.{name}" for slot in ("exp_avg", "exp_avg_sq") for name in names]
    assert sorted(manifest.tensors) == [*names, *moments]
    folder = base / "global_step3"
    digest = read_manifest(folder).weights_digest
    assert manifest.scalars["base"] == {"path": str(folder.resolve()), "step": 3, "digest": digest}


def test_it_goes_on_from_base_and_own_checkpoint_bit_for_bit(base: Path, tmp_path: Path) -> None:
    whole = tuned(5, tmp_path / "whole", load_dir=base)
    tuned(2, tmp_path / "tuned", load_dir=base)
    require_equal(tuned(5, tmp_path / "tuned", load_dir=base), whole)
    # also in a folder of its own, from one of the steps of the first
    require_equal(tuned(5, tmp_path / "other", load_dir=tmp_path / "tuned" / "global_step2"), whole)


def tune_until_killed(rank: int, world_size: int, folder: Path) -> None:
    """Tune, saving after every step, with an evaluation in between."""
    tuned(4, folder / "tuned", load_dir=folder / "base", save_interval=1, eval_interval=2, validation=Points(4))


KILLED_AT = {
    **{f"save.{point}": 2 for point in ("before_data", "mid_data", "after_data", "before_manifest", "mid_manifest")},
    **{f"save.{point}": 2 for point in ("before_rename", "after_rename", "during_retention")},
    **{f"step.{point}": 3 for point in ("before_forward", "after_backward", "after_optimizer")},
    "eval.batch": 1,
}
"""Every point at which a run can be made to die, and at which of its passages it is."""


@pytest.mark.parametrize(
    "point", [pytest.param(one, marks=() if one == "save.before_rename" else pytest.mark.slow) for one in KILLED_AT]
)
def test_a_fine_tuning_killed_anywhere_goes_on_from_its_base(base: Path, tmp_path: Path, point: str) -> None:
    whole = tuned(4, None, load_dir=base)
    fault = {"SCALING_FAULT": f"{point}:{KILLED_AT[point]}=kill"}
    (outcome,) = run_world(tune_until_killed, 1, tmp_path, environment=fault)
    assert outcome.exit_code == -signal.SIGKILL
    found = find_newest(tmp_path / "tuned").require()
    assert found.step in (1, 2)
    require_equal(tuned(4, tmp_path / "tuned", load_dir=base), whole)


def tune_in_a_world(rank: int, world_size: int, sizes: dict[str, int], folder: Path) -> str:
    """Tune, interrupted once; return what is said where the base is gone."""
    with connected(**sizes, global_batch_size=8, micro_batch_size=2) as topology:
        for steps in (2, 4):
            tuned(steps, folder / "tuned", topology=topology, load_dir=folder / "base")
        trainer, _ = make_trainer(topology, save_dir=folder / "tuned", load_dir=folder / "tuned", tunes=TUNES)
        if rank == 0:
            shutil.move(folder / "base", folder / "moved")
        topology.agree("moved", None, len)
        with pytest.raises(CheckpointError) as refused:
            trainer.resume()
    return str(refused.value)


@pytest.mark.parametrize("sizes", [{"pipe": 2}, pytest.param({"data": 2}, marks=pytest.mark.slow)], ids=str)
def test_ranks_tune_on_a_base_together(base: Path, tmp_path: Path, sizes: dict[str, int]) -> None:
    alone = tuned(4, None, load_dir=base)
    said = run_distributed(tune_in_a_world, 2, sizes, tmp_path)
    assert said[0] == said[1]
    assert f"  - {base}/global_step3: no checkpoint of that step\n" in said[0]
    assert "tuned: no checkpoint of that step" in said[0]
    found = {name: torch.zeros_like(value) for name, value in weights(alone).items() if "weight" not in name}
    tensors = [GlobalTensor(name, tuple(value.shape), [(whole(value.shape), value)]) for name, value in found.items()]
    Checkpointer(None).load(tmp_path / "tuned", tensors, allowed_unexpected=["^optimizer"])
    for name, value in found.items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=1e-12, atol=1e-12)


def test_the_base_may_move_and_lose_its_optimizer_states_but_not_be_another(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tuned(4, tmp_path / "whole", load_dir=base)
    tuned(2, tmp_path / "tuned", load_dir=base)
    drop_optimizer(base / "global_step3")
    require_equal(tuned(4, shutil.copytree(tmp_path / "tuned", tmp_path / "again")), whole)
    moved = shutil.move(base, tmp_path / "moved")
    (tmp_path / "moved" / "global_step2").rename(tmp_path / "another")
    before = caplog.text
    require_equal(tuned(4, shutil.copytree(tmp_path / "tuned", tmp_path / "moved_on"), load_dir=moved), whole)
    assert "rejected" not in caplog.text.removeprefix(before)

    digests = [
        read_manifest(folder).weights_digest for folder in (tmp_path / "moved" / "global_step3", tmp_path / "another")
    ]
    (base / "global_step3").mkdir(parents=True)
    trainer, _ = make_trainer(save_dir=tmp_path / "tuned", load_dir=tmp_path / "another", tunes=TUNES)
    with pytest.raises(CheckpointError) as refused:
        trainer.resume()
    recorded = BaseReference(base.resolve() / "global_step3", 3, digests[0])
    text = str(refused.value)
    assert (
        f"trained on the base {recorded.path} (step 3, digest of its weights {digests[0][:12]}), which was not" in text
    )
    assert f"  - {base}/global_step3: {base}/global_step3 is not a complete checkpoint" in text
    assert f"  - {tmp_path}/another: it is of step 2 and the digest of its weights is {digests[1][:12]}\n" in text
    assert text.endswith("set trainer.load_dir to the folder that the base is in now")
    assert glance_at_base(recorded, tmp_path / "another") == text
    assert glance_at_base(recorded, tmp_path / "moved") is None


def test_the_settings_of_loading_hold_for_the_base(base: Path, tmp_path: Path) -> None:
    """What is ignored concerns what is trained: without its stored values something frozen would be at random."""
    trainer, _ = make_trainer(load_dir=base, tunes=TUNES, ignore_keys_in_checkpoint=[r"^layers\.0\."])
    initial = weights(trainer)
    trainer.resume()
    assert torch.equal(weights(trainer)["layers.0.bias"], initial["layers.0.bias"])
    assert not torch.equal(weights(trainer)["layers.0.weight"], initial["layers.0.weight"])


def test_a_mapped_base_gives_the_same_bits(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copied = tuned(4, tmp_path / "copied", load_dir=base)
    with caplog.at_level(logging.INFO):
        mapped = tuned(4, tmp_path / "mapped", load_dir=base, map_base=True)
    assert "mapped 256 of 256 bytes of frozen weights" in caplog.text
    require_equal(mapped, copied)
    (file,) = (entry for name, entry in read_manifest(base / "global_step3").files.items() if "model" in name)
    make_trainer(load_dir=base, map_base=True)[0].resume()
    assert "trainer.map_base has no effect" in caplog.text
    for name, parameter in mapped.learner.module.named_parameters():
        assert (parameter.untyped_storage().nbytes() == file.bytes) == ("weight" in name), name


def test_a_base_that_lacks_what_is_frozen_is_refused(base: Path, tmp_path: Path) -> None:
    frozen, _ = make_trainer(load_dir=base, tunes=(r"bias$",))
    with pytest.raises(CheckpointError, match=r"2 missing in the checkpoint .*\n    layers.0.gain \[4\]"):
        frozen.resume()
    allowed, _ = make_trainer(load_dir=base, tunes=(r"bias$",), allowed_missing_keys_in_checkpoint=["gain"])
    assert allowed.resume()


def test_whole_models_and_what_is_trained_on_one_are_not_mixed_up(base: Path, tmp_path: Path) -> None:
    tuned(2, tmp_path / "tuned", load_dir=base)
    whole, _ = make_trainer(load_dir=tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="it holds only what was trained on a base, and this run trains a whole"):
        whole.resume()
    on_own, _ = make_trainer(save_dir=base, tunes=TUNES)
    with pytest.raises(CheckpointError, match=r"it holds a whole model, .* name it as trainer\.load_dir, with another"):
        on_own.resume()


def test_without_a_base_what_is_frozen_keeps_its_initial_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tuned(4, tmp_path / "whole")
    assert "there is no base: what is frozen keeps its random values" in caplog.text
    tuned(2, tmp_path / "tuned")
    assert read_manifest(tmp_path / "tuned" / "global_step2").scalars["base"] is None
    require_equal(tuned(4, tmp_path / "tuned"), whole)
