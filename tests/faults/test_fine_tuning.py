"""Fine-tunings that are killed at every fault point go on from their base and their own checkpoint bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scaling.core.checkpoint.search import find_newest
from tests.faults.engine import Settings, Source, Undisturbed, launch, layout
from tests.faults.matrix import differences

LORA: Settings = {
    "transformer_architecture.lora_config": {
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.1,
        "use_dora": True,
        "parallel_modules": ["query", "key", "value", "dense", "dense_in", "siglu_weight", "dense_out"],
    }
}
POINTS = [
    *(f"save.{name}" for name in ("before_data", "mid_data", "after_data", "before_manifest", "mid_manifest")),
    *(f"save.{name}" for name in ("before_rename", "after_rename", "during_retention")),
    *(f"step.{name}" for name in ("before_forward", "after_backward", "after_optimizer")),
]


@pytest.fixture(scope="module")
def base(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    end = launch(source.settings({"trainer.save_dir": str(folder), "trainer.train_iterations": 2}))
    assert end.status == 0, end.message
    return folder


@pytest.fixture(scope="module", params=[layout(pipe=2), layout(data=2), layout(model=2)], ids=["pipe", "data", "model"])
def tuned(
    request: pytest.FixtureRequest, source: Source, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """A fine-tuning that nothing happened to."""
    run = Undisturbed.run(
        source, tmp_path_factory.mktemp("tuned"), LORA, request.param, {"trainer.load_dir": str(base)}
    )
    for folder in run.save_dir.glob("global_step*"):
        manifest = find_newest(folder).require().manifest
        assert all("lora_lora" in name for name in manifest.tensors)
        held = sum(entry.bytes for entry in manifest.tensors.values())
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size - held <= 0.05 * held + 64 * 2**10
    return run


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_fine_tuning_goes_on(tuned: Undisturbed, tmp_path: Path, point: str) -> None:
    settings = tuned.source.settings(tuned.changes, {"trainer.save_dir": str(tmp_path / "run")})
    assert launch(settings, fault=f"{point}@1:3=kill").status != 0
    end = launch(settings)
    assert end.state is not None, end.message
    assert not differences(end.state, tuned.end.state or {})


@pytest.mark.slow
def test_a_base_that_has_moved_is_found_and_may_be_mapped(tuned: Undisturbed, base: Path, tmp_path: Path) -> None:
    settings = tuned.source.settings(tuned.changes, {"trainer.save_dir": str(tmp_path / "run")})
    assert launch(settings, fault="step.after_optimizer@1:3=kill").status != 0
    moved = shutil.move(base, tmp_path / "moved")
    try:
        gone = launch(settings)
        assert f"this was trained on the base {base}/global_step2" in gone.message
        assert "set trainer.load_dir to the folder that the base is in now" in gone.message
        end = launch({**settings, "trainer.load_dir": str(moved), "trainer.map_base": True})
    finally:
        shutil.move(moved, base)
    assert end.state is not None, end.message
    assert not differences(end.state, tuned.end.state or {})
