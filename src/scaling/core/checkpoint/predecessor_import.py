"""Read a layer-wise checkpoint of the predecessor: tensors only, nothing in it is ever executed."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from scaling.core.boxes import GlobalTensor, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import new_step_folder, step_of
from scaling.core.config.plain_words import first_of
from scaling.core.errors import CheckpointError, StorageError
from scaling.core.storage.json_values import Json

_LAYER_FILE: Final = re.compile(r"model_state_layer_(\d+)_([A-Za-z0-9]+)(?:_.+)?\.pt")

_NAMED: Final = 5
"""How many missing layers a message names."""

Rename = Callable[[int, str, str], "str | None"]
"""(layer index, layer class, name within the layer) -> global name, or None to leave the tensor out."""


def by_layer_index(layer: int, layer_class: str, name: str) -> str:
    """Name a tensor `layers.<index>.<name>`; a tied head shares the embedding of layer 0."""
    return f"layers.{0 if layer_class.endswith('Tied') else layer}.{name}"


def read_predecessor(
    folder: Path, *, rename: Rename = by_layer_index, num_layers: int | None = None
) -> dict[str, Tensor]:
    """Return the model's tensors by global name, backed by the files (memory-mapped where their format allows).

    `folder` is a step folder of the predecessor, or a directory whose `latest` names one. Files that hold anything but
    tensors and plain containers are a `CheckpointError`, and so is a missing layer: a gap, or one of the first
    `num_layers`. Two tensors may share a name where they are equal (tied ones).
    """
    folder = predecessor_step_folder(folder)
    files: list[tuple[Path, int, str]] = []
    for path in sorted(folder.glob("model_state_layer_*.pt")):
        match = _LAYER_FILE.fullmatch(path.name)
        if match is None:
            raise CheckpointError(f"{path} is not named like a layer of the predecessor")
        files.append((path, int(match[1]), match[2]))
    _require_layers(folder, {layer for _, layer, _ in files}, num_layers)
    found: dict[str, Tensor] = {}
    for path, layer, layer_class in files:
        for name, tensor in _tensors_of(path).items():
            key = rename(layer, layer_class, name)
            if key is None:
                continue
            other = found.setdefault(key, tensor)
            if other is not tensor and not _same(other, tensor):
                raise CheckpointError(f"{path}: {name} and an earlier tensor are both named {key}, but differ")
    if not found:
        raise CheckpointError(f"{folder} is not a checkpoint of the predecessor: no tensors in model_state_layer_*.pt")
    return found


def import_predecessor(
    folder: Path,
    save_dir: Path,
    *,
    step: int | None = None,
    rename: Rename = by_layer_index,
    num_layers: int | None = None,
    scalars: Mapping[str, Json] | None = None,
) -> Path:
    """Convert the model of a predecessor's checkpoint into one of this library; return its step folder.

    `step` defaults to the one in the folder's name, or to 0 where the name has none, as with published checkpoints;
    `num_layers` defaults to as many as there are. Optimizer state, counters and random state are not converted.
    """
    source = predecessor_step_folder(folder)
    number = (step_of(source.absolute()) or 0) if step is None else step
    target = new_step_folder(save_dir, number)
    tensors = [
        GlobalTensor(key, tuple(tensor.shape), [(whole(tensor.shape), tensor)])
        for key, tensor in read_predecessor(source, rename=rename, num_layers=num_layers).items()
    ]
    Checkpointer(save_dir, information={"imported_from": str(source)}).save(number, tensors, scalars or {})
    return target


def predecessor_step_folder(folder: Path) -> Path:
    """Return the step folder that is meant: follow the predecessor's `latest`, but never out of the folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name a step folder of the predecessor, or the one around it")
    latest = folder / "latest"
    if not latest.is_file():
        return folder
    name = latest.read_text(encoding="utf-8", errors="replace")[:100].strip()
    if step_of(Path(name)) is None or Path(name).name != name:
        raise CheckpointError(f"{latest} should name a folder global_step<N>, but contains {name!r}")
    return folder / name


def _require_layers(folder: Path, found: Set[int], num_layers: int | None) -> None:
    """Refuse a model with a gap: nothing else would notice before the model is used."""
    if not found:
        return
    missing = sorted(set(range(max(num_layers or 0, max(found) + 1))) - found)
    if missing:
        names = first_of([f"model_state_layer_{layer}_*.pt" for layer in missing], _NAMED)
        described = "" if num_layers is None else f" (its configuration describes layers 0 to {num_layers - 1})"
        raise CheckpointError(
            f"{folder} is incomplete{described}: there is no {names}; copy the missing files from where the "
            "checkpoint was written"
        )


def _tensors_of(path: Path) -> dict[str, Tensor]:
    # The messages of torch are left out: some recommend loading the file including its code.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before zip archives cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds something else than tensors, which may be code, or is no file of torch; nothing in it was "
            "executed. Import only what the predecessor has written as a layer: get the file anew from a source that "
            "you trust"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # torch raises many kinds of errors for malformed bytes
        raise CheckpointError(
            f"{path} is damaged, cut off or no file of torch; copy it again from where the checkpoint was written"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} is not a table of named tensors")
    return content


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
