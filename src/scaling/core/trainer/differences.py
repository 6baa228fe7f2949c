"""Messages about the checkpoint that a run starts from: excused parameters, changed settings, names of nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scaling.core.checkpoint.checkpointer import Loaded
from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX
from scaling.core.checkpoint.load import covered
from scaling.core.checkpoint.resume import ABSENT, FINGERPRINTS, Change, behind_digests, compare, covers
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.origin import LogOnce, Origin
from scaling.core.trainer.state import RunIdentity


def compare_settings(
    stored: Mapping[str, Any] | None,
    identity: RunIdentity,
    accept: Sequence[str],
    *,
    continues: bool,
    of_base: bool = False,
    log_once: LogOnce,
) -> None:
    """List settings that differ from the checkpoint's configuration; refuse those that make it another run.

    A training on a base (`of_base`) has other settings than the training of the base; this is no reason for a warning.
    """
    if stored is None:
        log_once(logging.WARNING, "the checkpoint holds no configuration that this one could be compared with")
        return
    present = identity.as_dict()
    paths = [*_paths("", stored), *_paths("", present)]
    # Only names that never were settings: from the next checkpoint on, an accepted change is no difference any more.
    if unknown := [name for name in accept if not any(covers(name, path) for path in paths)]:
        text = "trainer.accept_changes: there is no such setting, neither now nor in the checkpoint: %s"
        log_once(logging.WARNING, text, ", ".join(unknown))
    comparison = compare(stored, present, identity.change_rules, accept=accept, continues=continues)
    reasons = behind_digests(comparison, identity.decided_by)
    comparison.require(reasons=reasons)
    for change in comparison.accepted if of_base else (*comparison.accepted, *comparison.schedule):
        if _is_of_no_run(change, stored):
            continue
        why = f". {reasons[change.path].strip()}" if change.path in reasons else ""
        log_once(logging.WARNING, "resuming with another setting: %s%s", change, why)
    if of_base:  # most settings differ from those of another training
        paths = [change.path for change in comparison.schedule if not _is_of_no_run(change, stored)]
        if paths:
            log_once(logging.INFO, "set otherwise than where the base was trained: %s", ", ".join(paths))
    elif comparison.runtime:
        free = "; ".join(map(str, comparison.runtime))
        log_once(logging.INFO, "resuming with other settings of how and where it runs: %s", free)


def _is_of_no_run(change: Change, stored: Mapping[str, Any]) -> bool:
    """Return whether a setting belongs to a training, and the checkpoint to a model that no training here wrote."""
    section, _, _ = change.path.partition(".")
    return "trainer" not in stored and change.stored is ABSENT and (section not in stored or section == FINGERPRINTS)


def list_parameters(loaded: Loaded, *, log_once: LogOnce) -> None:
    """Log the parameters that a setting has excused, because a pattern may cover more than was meant."""
    missing, unexpected = set(loaded.missing), set(loaded.unexpected)
    for found, what in (
        (missing - unexpected, "are not in the checkpoint and keep their initial values"),
        (missing & unexpected, "are ignored in the checkpoint and keep their initial values"),
        (unexpected - missing, "are in the checkpoint and were not read"),
    ):
        if names := sorted(name for name in found if not name.startswith(OPTIMIZER_PREFIX)):
            log_once(logging.WARNING, "%d parameters %s: %s", len(names), what, ", ".join(names))


def list_idle_patterns(origin: Origin, loaded: Loaded, config: TrainerConfig, *, log_once: LogOnce) -> None:
    """Log the patterns that match nothing, as mistyped ones do.

    Not for a run's own checkpoint: there the patterns took effect when the run began.
    """
    if origin.own:
        return
    known = {*origin.stored.manifest.tensors, *loaded.missing, *loaded.absent}  # everything that the model wants
    for setting in (
        "allowed_missing_keys_in_checkpoint",
        "allowed_unexpected_keys_in_checkpoint",
        "ignore_keys_in_checkpoint",
    ):
        patterns: Sequence[str] = getattr(config, setting) or ()
        if idle := [pattern for pattern in patterns if not any(covered(name, (pattern,)) for name in known)]:
            text = "trainer.%s: no parameter of the model or the checkpoint matches %s"
            log_once(logging.WARNING, text, setting, ", ".join(f"'{pattern}'" for pattern in idle))


def _paths(path: str, value: Any) -> Iterator[str]:
    """Yield the dotted paths of all settings."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _paths(f"{path}.{key}" if path else key, below)
    elif isinstance(value, list | tuple) and value:
        for index, below in enumerate(value):
            yield from _paths(f"{path}.{index}", below)
    else:
        yield path
