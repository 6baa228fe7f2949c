"""Why a run cannot resume from a checkpoint, judged by names and the manifest: pure, without torch."""

from __future__ import annotations

from collections.abc import Mapping

from scaling.core.checkpoint.base import is_on_base, reference_problems
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX, step_of
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.errors import Problem
from scaling.core.trainer.config import TrainerConfig


def is_base(manifest: Manifest, *, own: bool, on_base: bool) -> bool:
    """Return whether a checkpoint is the base that a fine-tuning begins on, not one that it resumes from."""
    return on_base and not own and not is_on_base(manifest)


def scalars_wanted(
    manifest: Manifest, config: TrainerConfig, *, own: bool, on_base: bool = False
) -> Mapping[str, bool]:
    """Return which scalars of a checkpoint a run resumes from; `own`: the checkpoint is in save_dir."""
    return {
        "trainer": goes_on(manifest, config, own=own, on_base=on_base),
        "optimizer": takes_optimizer(manifest, config, own=own, on_base=on_base),
    }


def goes_on(manifest: Manifest, config: TrainerConfig, *, own: bool, on_base: bool) -> bool:
    """Return whether a run continues to count steps and samples from those of a checkpoint."""
    return own or (config.load_context and not is_base(manifest, own=own, on_base=on_base))


def takes_optimizer(manifest: Manifest, config: TrainerConfig, *, own: bool, on_base: bool = False) -> bool:
    """Return whether a run takes the state of the optimizer from a checkpoint."""
    if is_base(manifest, own=own, on_base=on_base):
        return False
    return config.load_optimizer_states or (own and manifest.holds(OPTIMIZER_PREFIX))


def contents_problems(manifest: Manifest, *, own: bool, on_base: bool) -> list[str]:
    """Return why a checkpoint is not of the kind that a run starts from: a whole model, or weights trained on one."""
    if is_on_base(manifest) and not on_base:
        return [
            "it holds only what was trained on a base, and this run trains a whole model; set the method it was "
            "trained with, or merge it into its base: scaling checkpoint merge BASE ADAPTER DST"
        ]
    if on_base and own and not is_on_base(manifest):
        return [
            "it holds a whole model, and this run saves only what it trains on its base; to train on it, name it as "
            "trainer.load_dir, with another trainer.save_dir"
        ]
    return reference_problems(manifest.scalars)


def scalars_lacking(manifest: Manifest, config: TrainerConfig, *, own: bool, on_base: bool = False) -> list[str]:
    """Return which scalars a checkpoint lacks that a run would resume from, and what to do."""
    wanted = scalars_wanted(manifest, config, own=own, on_base=on_base)
    lacking = [name for name, taken in wanted.items() if taken and name not in manifest.scalars]
    if not lacking:
        return []
    what = {"trainer": "the numbers of steps and samples", "optimizer": "the state of the optimizer"}
    settings = {"trainer": "trainer.load_context", "optimizer": "trainer.load_optimizer_states"}
    elsewhere = "name it as trainer.load_dir, with another trainer.save_dir, and " if own else ""
    return [
        f"it lacks {' and '.join(what[name] for name in lacking)} (imported checkpoints do); to start from its "
        f"weights, {elsewhere}set {' and '.join(settings[name] for name in lacking)} to false"
    ]


def refused_return(config: TrainerConfig, newest: int) -> Problem | None:
    """Return what is wrong with a `load_dir` that names a step of `save_dir`, whose newest is another one. Pure."""
    load_dir, save_dir = config.load_dir, config.save_dir
    if load_dir is None or save_dir is None or load_dir.resolve().parent != save_dir.resolve():
        return None
    wanted = step_of(load_dir.resolve())
    if wanted is None or wanted == newest:
        return None
    return Problem(
        "trainer.load_dir",
        f"names step {wanted} of save_dir itself, but a run goes on from the newest checkpoint of its save_dir, which "
        f"is step {newest}. To go back to step {wanted}, set trainer.save_dir to another folder (or move the later "
        f"steps out of {save_dir}); to go on, remove load_dir",
    )
