"""The start of a run: the newest checkpoint of its own, else the one in load_dir, else random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, final

from scaling.core.checkpoint.base import BaseReference
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import step_of
from scaling.core.checkpoint.manifest import Manifest
from scaling.core.checkpoint.search import StoredCheckpoint
from scaling.core.errors import CheckpointError, ConfigError
from scaling.core.optimizer.optimizer import optimizer_state_problems
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.fitness import (
    contents_problems,
    goes_on,
    is_base,
    refused_return,
    scalars_lacking,
    scalars_wanted,
    takes_optimizer,
)
from scaling.core.trainer.state import train_state_problems


@final
@dataclass(frozen=True)
class Origin:
    """A checkpoint to start from, and how much of it is wanted.

    The settings say how much of a checkpoint in load_dir is loaded. A run's own checkpoint is loaded in full: an
    interrupted fine-tuning must not restart its counts, or replace its optimizer, a second time.
    """

    stored: StoredCheckpoint
    own: bool
    """Whether the checkpoint is in save_dir, so that this run, or an earlier start of it, wrote it."""
    config: TrainerConfig
    on_base: bool = False
    """Whether the run trains on a base."""

    @property
    def is_base(self) -> bool:
        """Return whether it is the base itself, from which a fine-tuning starts at step 0."""
        return is_base(self.stored.manifest, own=self.own, on_base=self.on_base)

    @property
    def reference(self) -> BaseReference | None:
        """Return the reference to the base that the run trains on, None where it has none."""
        return BaseReference.to(self.stored) if self.is_base else BaseReference.of(self.stored.manifest.scalars)

    @property
    def with_optimizer(self) -> bool:
        """Return whether to load the optimizer's states."""
        return takes_optimizer(self.stored.manifest, self.config, own=self.own, on_base=self.on_base)

    @property
    def with_context(self) -> bool:
        """Return whether to continue counting steps and samples."""
        return goes_on(self.stored.manifest, self.config, own=self.own, on_base=self.on_base)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Return patterns of parameters that are not read."""
        return () if self.own else tuple(self.config.ignore_keys_in_checkpoint or ())


def scalar_problems(manifest: Manifest, config: TrainerConfig, *, own: bool, on_base: bool = False) -> list[str]:
    """Return what is wrong with those scalars of a checkpoint that a run would resume from. Pure.

    A digest proves that they are unchanged, not that a trainer wrote them. Scalars that are not used may be absent or
    anything.
    """
    scalars = manifest.scalars
    if found := contents_problems(manifest, own=own, on_base=on_base):
        return found
    if not isinstance(scalars.get("config", {}), Mapping):
        found.append(f"its configuration is {scalars['config']!r:.100}, not a table of settings")
    wanted = scalars_wanted(manifest, config, own=own, on_base=on_base)
    found += scalars_lacking(manifest, config, own=own, on_base=on_base)
    if wanted["trainer"] and "trainer" in scalars:
        state: Any = scalars["trainer"]
        found += train_state_problems(state) or _other_step(state["step"], manifest.step)
    if wanted["optimizer"] and "optimizer" in scalars:
        found += optimizer_state_problems(scalars["optimizer"])
    return found


def _other_step(counted: int, saved: int) -> list[str]:
    return [] if counted == saved else [f"trainer.step is {counted}, but it is the checkpoint of step {saved}"]


class LogOnce(Protocol):
    """A function that logs, on one rank, a message that is the same on all."""

    def __call__(self, level: int, text: str, /, *values: object) -> None:
        """Log."""


def find_origin(
    config: TrainerConfig, checkpointer: Checkpointer, *, log_once: LogOnce, on_base: bool = False
) -> Origin | None:
    """Return the start of a run; None for random weights. Collective: all ranks verify the candidates together."""
    for own, directory in ((True, config.save_dir), (False, config.load_dir)):
        if directory is None:
            continue
        search = checkpointer.find(
            directory,
            weights_only=partial(_skips_optimizer, config=config, own=own, on_base=on_base),
            check=partial(scalar_problems, config=config, own=own, on_base=on_base),
        )
        if search.found is None and search.rejected:  # starting anew would bury them
            try:
                search.require()
            except CheckpointError as error:
                raise CheckpointError(f"{error}\nTo start without them, move them out of {directory}.") from None
        if search.found is not None:
            origin = Origin(search.found, own, config, on_base)
            if own:
                _explain_what_is_not_used(origin, log_once)
            return origin
    if config.assert_checkpoint_loaded and (config.save_dir, config.load_dir) != (None, None):  # else there is a note
        raise CheckpointError(
            f"no checkpoint in save_dir ({config.save_dir}) or load_dir ({config.load_dir}), and "
            "trainer.assert_checkpoint_loaded is true; name a folder that holds one, or set it to false"
        )
    if config.loads_from_elsewhere:
        log_once(
            logging.WARNING,
            "there is no checkpoint in trainer.load_dir (%s): starting from random weights; to make that an error, set "
            "trainer.assert_checkpoint_loaded to true",
            config.load_dir,
        )
    elif on_base:
        text = "there is no base: what is frozen keeps its random values; to train on a model, name it as %s"
        log_once(logging.WARNING, text, "trainer.load_dir")
    return None


def _skips_optimizer(manifest: Manifest, *, config: TrainerConfig, own: bool, on_base: bool) -> bool:
    return is_base(manifest, own=own, on_base=on_base) or (not own and not config.load_optimizer_states)


def _explain_what_is_not_used(origin: Origin, log_once: LogOnce) -> None:
    """Say which settings have no effect because the run has a checkpoint of its own; refuse a contradiction."""
    config, path, step = origin.config, origin.stored.path, origin.stored.step
    assert config.save_dir is not None
    elsewhere = config.loads_from_elsewhere
    if config.load_dir is not None and elsewhere:
        wanted = step_of(config.load_dir.resolve())
        if config.load_dir.resolve().parent != config.save_dir.resolve() or wanted is None:
            if origin.reference is None:  # where there is a base, it is looked for there too
                log_once(
                    logging.INFO,
                    "trainer.load_dir (%s) is not used: the run goes on from its own %s",
                    config.load_dir,
                    path,
                )
        elif (problem := refused_return(config, step)) is not None:
            raise ConfigError(problem)
    passed_over = [
        name
        for name, used in (
            ("load_context", not config.load_context),
            ("load_optimizer_states", origin.with_optimizer and not config.load_optimizer_states),
            ("ignore_keys_in_checkpoint", bool(config.ignore_keys_in_checkpoint) and not origin.on_base),
        )
        if used
    ]
    if passed_over:
        log_once(
            logging.INFO if elsewhere else logging.WARNING,  # they took effect when this run began
            "%s: for checkpoints in load_dir only, but %s is this run's own, so it goes on from all of it; to start "
            "anew from its weights, name it as load_dir and another save_dir",
            ", ".join(f"trainer.{name}" for name in passed_over),
            path,
        )
