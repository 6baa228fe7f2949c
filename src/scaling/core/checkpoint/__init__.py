"""Checkpoints: boxes of named tensors in files with digests, saved by one rename, found and loaded in any layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.checkpoint.base import BaseReference as BaseReference
    from scaling.core.checkpoint.base import find_base as find_base
    from scaling.core.checkpoint.base import glance_at_base as glance_at_base
    from scaling.core.checkpoint.base import is_on_base as is_on_base
    from scaling.core.checkpoint.checkpointer import Checkpointer as Checkpointer
    from scaling.core.checkpoint.communicator import Communicator as Communicator
    from scaling.core.checkpoint.communicator import StoreCommunicator as StoreCommunicator
    from scaling.core.checkpoint.elsewhere import instead_of_checkpoint as instead_of_checkpoint
    from scaling.core.checkpoint.files import TensorFile as TensorFile
    from scaling.core.checkpoint.folders import OPTIMIZER_PREFIX as OPTIMIZER_PREFIX
    from scaling.core.checkpoint.folders import Retention as Retention
    from scaling.core.checkpoint.folders import list_steps as list_steps
    from scaling.core.checkpoint.folders import new_step_folder as new_step_folder
    from scaling.core.checkpoint.folders import step_of as step_of
    from scaling.core.checkpoint.manifest import FileEntry as FileEntry
    from scaling.core.checkpoint.nearby import folder_meant as folder_meant
    from scaling.core.checkpoint.newest import load_newest as load_newest
    from scaling.core.checkpoint.pieces import LazyTensor as LazyTensor
    from scaling.core.checkpoint.pieces import save_pieces as save_pieces
    from scaling.core.checkpoint.plain_files import PlainTensor as PlainTensor
    from scaling.core.checkpoint.plain_files import open_plain as open_plain
    from scaling.core.checkpoint.plain_files import write_plain as write_plain
    from scaling.core.checkpoint.reader import CheckpointReader as CheckpointReader
    from scaling.core.checkpoint.resume import ChangeRules as ChangeRules
    from scaling.core.checkpoint.resume import compare as compare
    from scaling.core.checkpoint.search import Search as Search
    from scaling.core.checkpoint.search import StoredCheckpoint as StoredCheckpoint
    from scaling.core.checkpoint.search import glance as glance
    from scaling.core.checkpoint.verify import read_manifest as read_manifest

load_on_use(__name__)
