"""Checks of the start of a run: its folders, the checkpoint it starts from, and the parameters that it trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from scaling.core import (
    BaseConfig,
    BaseReference,
    ChangeRules,
    ConfigError,
    LoggerConfig,
    Problem,
    Search,
    TrainerConfig,
    compare,
    contents_problems,
    glance,
    glance_at_base,
    goes_on,
    instead_of_checkpoint,
    list_steps,
    refused_return,
    scalars_lacking,
    step_of,
)
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.data import DataConfig
from scaling.transformer.config.groups import free_on_base, group_problems
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.config.training import TrainingConfig, TrainingGroupConfig

_NOT_GIVEN: Final = {"data.eod_token_id": (None,), "transformer_architecture.vocab_size": (None, 0)}
"""Settings that, at these values, are derived from data and tokenizer; they are compared once they are known."""


def groups_have_parameters(
    training_groups: list[TrainingGroupConfig],
    transformer_architecture: TransformerArchitectureConfig,
    training: TrainingConfig,
) -> Iterator[Problem]:
    """Check that every group takes parameters, and that every parameter is in one group."""
    if not training_groups:  # one group of all parameters
        return
    yield from group_problems(training_groups, transformer_architecture, training)


def folders_are_folders(trainer: TrainerConfig, logger: LoggerConfig) -> Iterator[Problem]:
    """Check that the paths to write to are folders or can become folders."""
    for path, folder in (("trainer.save_dir", trainer.save_dir), ("logger.log_dir", logger.log_dir)):
        for place in (folder, *folder.parents) if folder else ():
            if os.path.exists(place):
                if not os.path.isdir(place):
                    yield Problem(path, f"is {str(folder)!r}, but {str(place)!r} is a file; name another folder")
            elif os.path.islink(place):
                yield Problem(
                    path,
                    f"is {str(folder)!r}, but {str(place)!r} is a link to {os.readlink(place)!r}, which does not "
                    "exist; correct the link, make that folder, or name another one",
                )
    save_dir = trainer.save_dir
    if save_dir is not None and step_of(save_dir) is not None:
        yield Problem(
            "trainer.save_dir",
            f"is {str(save_dir)!r}, the name of one step's folder; to go on from it, name the folder that it is in, to "
            "start from it, name it as load_dir",
        )


def load_dir_has_a_checkpoint(trainer: TrainerConfig) -> Iterator[Problem]:
    """Check that load_dir has a checkpoint where one is needed: without one, the path is probably mistyped."""
    load_dir, save_dir = trainer.load_dir, trainer.save_dir
    with suppress(OSError):  # a save_dir that cannot be looked into
        if save_dir is not None and list_steps(save_dir):
            return
    if trainer.assert_checkpoint_loaded and load_dir is None and save_dir is not None:
        yield Problem(
            "trainer.assert_checkpoint_loaded",
            f"is true, but there is no checkpoint in save_dir ({str(save_dir)!r}); set it to false for the first start",
        )
    if load_dir is None:
        return
    named = f"is {str(load_dir)!r}"
    try:
        if not os.path.isdir(load_dir):
            yield from _missing_load_dir(trainer, named, instead_of_checkpoint(load_dir))
        elif trainer.assert_checkpoint_loaded or (trainer.loads_from_elsewhere and any(load_dir.iterdir())):
            found = glance(load_dir)
            if found.found is None:
                yield Problem("trainer.load_dir", f"{named}, but {_why_not(found, instead_of_checkpoint(load_dir))}")
    except OSError as error:
        yield Problem("trainer.load_dir", f"{named}, which cannot be read: {error.strerror}; correct it")


def _missing_load_dir(trainer: TrainerConfig, named: str, meant: str) -> Iterator[Problem]:
    if trainer.loads_from_elsewhere:
        yield Problem("trainer.load_dir", f"{named}, but there is no such folder; {meant or 'correct it'}")
    elif trainer.assert_checkpoint_loaded:
        yield Problem(
            "trainer.load_dir",
            f"{named}, as save_dir is, but there is no such folder yet, so nothing can be loaded; set "
            "assert_checkpoint_loaded to false for the first start, or correct it",
        )


def _why_not(search: Search, instead: str) -> str:
    if instead:
        return f"holds no checkpoint of this library: {instead}"
    if search.rejected:
        reasons = "; ".join(f"{candidate.path.name}: {candidate.reason}" for candidate in search.rejected)
        return f"holds no checkpoint that is complete ({reasons}); name another one"
    return "holds no checkpoint; name a folder with folders global_step<N>, or one of these"


def checkpoint_is_of_this_run(
    trainer: TrainerConfig, transformer_architecture: TransformerArchitectureConfig, data: DataConfig
) -> Iterator[Problem]:
    """Check that the checkpoint to start from has the same model and, where the run resumes, the same data order."""
    on_base = transformer_architecture.has_methods
    for own, directory in ((True, trainer.save_dir), (False, trainer.load_dir)):
        with suppress(OSError):  # reported by other checks, or by the run
            stored = None if directory is None else glance(directory).found
            if stored is not None:
                if own and (problem := refused_return(trainer, stored.step)) is not None:
                    yield problem
                manifest = stored.manifest
                what = f"trainer.{'save_dir' if own else 'load_dir'}", f"is {str(directory)!r}, but"
                if unfit := contents_problems(manifest, own=own, on_base=on_base):
                    yield from (Problem(what[0], f"{what[1]} {problem}") for problem in unfit)
                    return
                for lack in () if own else scalars_lacking(manifest, trainer, own=False, on_base=on_base):
                    yield Problem(what[0], f"{what[1]} {lack}")
                reference = BaseReference.of(manifest.scalars)
                gone = None if reference is None else glance_at_base(reference, trainer.load_dir if own else None)
                if gone is not None:
                    anew = "; to train on another base, name another save_dir" if own else ""
                    yield Problem(what[0], f"holds {stored.path.name}, and {gone}{anew}")
                settings: Any = manifest.scalars.get("config")
                sections = {
                    "trainer": trainer,
                    "transformer_architecture": transformer_architecture,
                    "data": data,
                }
                if isinstance(settings, dict):
                    continues = goes_on(manifest, trainer, own=own, on_base=on_base)
                    accept = [
                        *trainer.accept_changes,
                        *(free_on_base(transformer_architecture) if on_base and not own else ()),
                    ]
                    yield from _differences(settings, sections, accept, continues=continues)
                return


def _differences(
    stored: dict[str, Any], sections: dict[str, BaseConfig], accept: Sequence[str], *, continues: bool
) -> Iterator[Problem]:
    present = {name: section.as_dict() for name, section in sections.items()}
    known = {name: stored[name] for name in sections if isinstance(stored.get(name), dict)}
    rules = ChangeRules.of(TransformerConfig)
    found = compare(known, present, rules, accept=accept, continues=continues)
    try:
        found.require()
    except ConfigError as error:
        values = {change.path: change.present for change in found.refused}
        for problem in error.problems:
            if values[problem.path] not in _NOT_GIVEN.get(problem.path, ()):
                yield problem


def methods_have_a_base(
    trainer: TrainerConfig, transformer_architecture: TransformerArchitectureConfig
) -> Iterator[Problem]:
    """Check that fine-tuning methods have a base, which they leave as it is."""
    if trainer.load_dir is not None or not transformer_architecture.has_methods:
        return
    with suppress(OSError):  # a save_dir that cannot be looked into
        if trainer.save_dir is not None and list_steps(trainer.save_dir):
            return
    yield Problem(
        "trainer.load_dir",
        "is null, but transformer_architecture has a method of fine-tuning, which trains beside a base that stays as "
        "it is: name the base's checkpoint (scaling hf import makes one of a model of Hugging Face)",
    )


START_CHECKS: tuple[Callable[..., Iterable[Problem]], ...] = (
    folders_are_folders,
    load_dir_has_a_checkpoint,
    groups_have_parameters,
    checkpoint_is_of_this_run,
    methods_have_a_base,
)
