"""Load the origin of a run into its learner: the base, if it trains on one, and then its own tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from torch import nn

from scaling.core.checkpoint.base import BaseReference
from scaling.core.checkpoint.checkpointer import Checkpointer, Loaded
from scaling.core.checkpoint.mapping import Held, Wanted, map_tensors
from scaling.core.checkpoint.search import StoredCheckpoint
from scaling.core.config.plain_words import first_of
from scaling.core.errors import CheckpointError
from scaling.core.nn.parameter import Piece
from scaling.core.optimizer.optimizer import MASTERS
from scaling.core.trainer.config import TrainerConfig
from scaling.core.trainer.differences import compare_settings, list_idle_patterns, list_parameters
from scaling.core.trainer.origin import LogOnce, Origin
from scaling.core.trainer.state import RunIdentity
from scaling.core.training.learner import Learner

OPTIMIZER_STATES: Final = r"^optimizer\."
_log = logging.getLogger(__name__)
_SHOWN: Final = 6
"""How many of the parameters that a fine-tuning adds are named."""


@final
@dataclass(frozen=True, kw_only=True)
class Start:
    """The loading of an origin into a learner. Collective: all ranks."""

    learner: Learner
    checkpointer: Checkpointer
    config: TrainerConfig
    identity: RunIdentity
    log_once: LogOnce

    def load(self, origin: Origin) -> BaseReference | None:
        """Load everything that is wanted from an origin, and return the base that the run trains on, if any."""
        reference = origin.reference
        self._compare(origin)
        if reference is not None:
            self._load_base(self._base(origin, reference), origin)
        if not origin.is_base:
            self._load_own(origin)
        if origin.with_optimizer:
            scalars: Any = origin.stored.manifest.scalars
            self.learner.optimizer.restore(scalars["optimizer"])
        else:
            self.learner.optimizer.refresh()
        return reference

    def _compare(self, origin: Origin) -> None:
        # Checked when the origin was found.
        settings: Mapping[str, Any] | None = origin.stored.manifest.scalars.get("config")  # type: ignore[assignment]
        compare_settings(
            settings,
            self.identity,
            (*self.config.accept_changes, *(self.identity.free_on_base if origin.is_base else ())),
            continues=origin.with_context,
            of_base=origin.is_base,
            log_once=self.log_once,
        )

    def _base(self, origin: Origin, reference: BaseReference) -> StoredCheckpoint:
        if origin.is_base:
            text = "training on the base %s: its weights alone are taken, and steps are counted from 0"
            self.log_once(logging.INFO, text, reference)
            return origin.stored
        stored = self.checkpointer.find_base(reference, self.config.load_dir if origin.own else None)
        self.log_once(logging.INFO, "going on from %s, on the base %s", origin.stored.path, stored.path)
        return stored

    def _load_base(self, stored: StoredCheckpoint, origin: Origin) -> None:
        """Load the weights of the base, also into trained parameters, which start from them."""
        learner, config = self.learner, self.config
        loaded = self.checkpointer.load(
            stored,
            learner.module.global_tensors(),
            allowed_missing=tuple(config.allowed_missing_keys_in_checkpoint or ()),
            allowed_unexpected=(*(config.allowed_unexpected_keys_in_checkpoint or ()), OPTIMIZER_STATES),
            ignore=tuple(config.ignore_keys_in_checkpoint or ()),
            optional={tensor.key for tensor in learner.weights()},
            grown=learner.recipe.grown,
        )
        if config.map_base:
            self._map(stored)
        learner.module.follow_base()
        if origin.is_base:
            self._list(loaded, origin)
            if loaded.absent:
                text = "%d trained tensors are new beside the base and start at their initial values: %s"
                names = first_of(loaded.absent, _SHOWN)
                self.log_once(logging.INFO, text, len(loaded.absent), names)

    def _map(self, stored: StoredCheckpoint) -> None:
        """Replace loaded frozen weights by views of the base's files, where these hold them as they are in memory."""
        learner = self.learner
        if learner.topology.device.type != "cpu":
            text = "trainer.map_base: the weights are copied, for they are used on a GPU; it concerns the CPU only"
            self.log_once(logging.WARNING, text)
            return
        frozen = {
            parameter: description
            for parameter, description in learner.module.parameters_with_meta()
            if parameter not in learner.trained
        }
        try:
            views = map_tensors(stored, {one: _wanted(one, frozen[one].pieces) for one in frozen})
        except (CheckpointError, OSError) as error:  # on this rank alone, which keeps its copies
            _log.warning("the base %s could not be mapped and stays copied: %s", stored.path, error)
            return
        for parameter, view in views.items():
            parameter.data = view
        mapped, whole = (sum(tensor.nbytes for tensor in tensors) for tensors in (views, frozen))
        self.log_once(logging.INFO, "mapped %d of %d bytes of frozen weights", mapped, whole)

    def _load_own(self, origin: Origin) -> None:
        config, learner = self.config, self.learner
        loaded = self.checkpointer.load(
            origin.stored,
            learner.global_tensors() if origin.with_optimizer else learner.weights(),
            allowed_missing=tuple(config.allowed_missing_keys_in_checkpoint or ()),
            allowed_unexpected=(*(config.allowed_unexpected_keys_in_checkpoint or ()), OPTIMIZER_STATES),
            ignore=origin.ignored,
            masters=MASTERS if origin.with_optimizer else None,
        )
        self._list(loaded, origin)

    def _list(self, loaded: Loaded, origin: Origin) -> None:
        list_parameters(loaded, log_once=self.log_once)
        list_idle_patterns(origin, loaded, self.config, log_once=self.log_once)


def _wanted(parameter: nn.Parameter, pieces: Sequence[Piece]) -> Wanted:
    held = [Held(piece.key, piece.shape, piece.box, piece.place) for piece in pieces]
    return Wanted(tuple(parameter.shape), parameter.dtype, held)
