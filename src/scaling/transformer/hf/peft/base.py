"""The base of an adapter: its family and modules, and its tensors where an adapter needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from scaling.core import BaseConfig, CheckpointError, CheckpointReader, StoredCheckpoint
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.finetuning import MethodsConfig
from scaling.transformer.hf.choose import family_for
from scaling.transformer.hf.companions import read_origin
from scaling.transformer.hf.peft.modules import Modules, modules_of
from scaling.transformer.hf.peft.values import Values
from scaling.transformer.hf.precision import WEIGHT_TYPES


def modules_on(architecture: TransformerArchitectureConfig, base_folder: Path | None) -> Modules:
    """Return the modules of a base, whose step folders are in `base_folder`; `architecture` may have methods.

    Raises:
        ConfigError: No family of Hugging Face can express the base.
    """
    base = architecture.without_methods()
    origin = read_origin(base_folder) if base_folder is not None and base_folder.is_dir() else None
    family = family_for(base, model_type=None if origin is None else origin.model_type)
    return modules_of(family, base)


def sections_of(architecture: TransformerArchitectureConfig) -> dict[str, Any]:
    """Return the sections of methods, with their defaults."""
    found = {name: getattr(architecture, name) for name in MethodsConfig.model_fields}
    return {
        name: value.model_dump() if isinstance(value, BaseConfig) else value for name, value in found.items() if value
    }


class BaseTensors:
    """The tensors of a base, which is searched for only when the first tensor is needed."""

    def __init__(self, find: Callable[[], StoredCheckpoint]) -> None:
        self._find = find
        self._reader: CheckpointReader | None = None

    def __enter__(self) -> BaseTensors:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def __call__(self, key: str) -> Values:
        """Return a tensor by its name; `CheckpointError` where the tensor or the base is missing."""
        if self._reader is None:
            self._reader = CheckpointReader(self._find())
        reader = self._reader
        entry = reader.stored.manifest.tensors.get(key)
        if entry is None or entry.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"the base {reader.stored.path} does not hold {key} as a weight; take a base that was saved whole"
            )

        def load() -> Tensor:
            return reader.read(key)

        return Values(WEIGHT_TYPES[entry.dtype], entry.shape, load)
