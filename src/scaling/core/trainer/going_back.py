"""Tell a run that would go back to an earlier step of its own why it cannot, before or when it starts."""

from __future__ import annotations

from scaling.core.checkpoint.folders import step_of
from scaling.core.errors import Problem
from scaling.core.trainer.config import TrainerConfig


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
