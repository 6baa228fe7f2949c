"""Read a layer-wise checkpoint of the predecessor: tensors only, nothing in it is ever executed."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from scaling.core.checkpoint.boxes import GlobalTensor, whole
from scaling.core.checkpoint.checkpointer import Checkpointer
from scaling.core.checkpoint.folders import new_step_folder, step_of
from scaling.core.checkpoint.manifest import Json
from scaling.core.errors import CheckpointError

_LAYER_FILE: Final = re.compile(r"model_state_layer_(\d+)_([A-Za-z0-9]+)(?:_.+)?\.pt")

Rename = Callable[[int, str, str], "str | None"]
"""(layer index, layer class, name within the layer) -> global name, or None to leave the tensor out."""


def by_layer_index(layer: int, layer_class: str, name: str) -> str:
    """Name a tensor `layers.<index>.<name>`; a tied head shares the embedding of layer 0."""
    return f"layers.{0 if layer_class.endswith('Tied') else layer}.{name}"


def read_predecessor(folder: Path, *, rename: Rename = by_layer_index) -> dict[str, Tensor]:
    """Return the model's tensors by global name, backed by the files (memory-mapped where their format allows).

    `folder` is a step folder of the predecessor, or a directory whose `latest` names one. Files that hold anything but
    tensors and plain containers are a `CheckpointError`. Two tensors may share a name where they are equal (tied ones).
    """
    folder = predecessor_step_folder(folder)
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model_state_layer_*.pt")):
        match = _LAYER_FILE.fullmatch(path.name)
        if match is None:
            raise CheckpointError(f"{path} is not named like a layer of the predecessor")
        for name, tensor in _tensors_of(path).items():
            key = rename(int(match[1]), match[2], name)
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
    scalars: Mapping[str, Json] | None = None,
) -> Path:
    """Convert the model of a predecessor's checkpoint into one of this library; return its step folder.

    `step` defaults to the one in the folder's name. Optimizer state, counters and random state are not converted.
    """
    source = predecessor_step_folder(folder)
    number = step_of(source) if step is None else step
    if number is None:
        raise CheckpointError(f"{source} is not named global_step<N>; say which step it is (--step)")
    target = new_step_folder(save_dir, number)
    tensors = [
        GlobalTensor(key, tuple(tensor.shape), [(whole(tensor.shape), tensor)])
        for key, tensor in read_predecessor(source, rename=rename).items()
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


def _tensors_of(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # the format before zip archives cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and was not opened further: {error}") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a file of torch: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} is not a table of named tensors")
    return content


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
