"""A folder of PEFT: its configuration and the header of its file, read without trust; and writing such a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from scaling.core import (
    CheckpointError,
    ConfigError,
    PlainTensor,
    TensorFile,
    first_of,
    open_plain,
    storage_errors,
    whole,
    write_plain,
)
from scaling.transformer.hf.folder import MAX_NAME_LENGTH, read_object, require_within
from scaling.transformer.hf.new_folder import new_folder, write_json
from scaling.transformer.hf.peft.translate import Theirs
from scaling.transformer.hf.peft.values import Values
from scaling.transformer.hf.precision import WEIGHT_TYPES

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
PICKLED: Final = "adapter_model.bin"


@dataclass(frozen=True)
class AdapterFolder:
    """A folder whose configuration can be read and whose file is consistent and open: close it, or use a `with`.

    Tensors are loaded from the open file when they are asked for.
    """

    path: Path
    adapter: Theirs
    file: TensorFile

    def __enter__(self) -> AdapterFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    @property
    def config_file(self) -> Path:
        """Return the path of the configuration, for messages."""
        return self.path / CONFIG_FILE

    @property
    def weights_file(self) -> Path:
        """Return the path of the tensors."""
        return self.path / WEIGHTS_FILE


def read_adapter(path: Path) -> AdapterFolder:
    """Read configuration and header.

    Raises:
        ConfigError: There is no such folder or no configuration in it.
        CheckpointError: The tensors are missing, not plain, or truncated.
        StorageError: Something cannot be read.
    """
    with storage_errors(f"reading the adapter {path}"):
        if not path.is_dir():
            raise ConfigError(
                f"{path} is {'a file' if path.exists() else 'not there'}; name the folder of an adapter, with "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}; nothing is downloaded here"
            )
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            require_within(path, path / name)
        config = read_object(path / CONFIG_FILE)
        if config is None:
            raise ConfigError(_no_config(path))
        if not (path / WEIGHTS_FILE).exists():
            raise CheckpointError(_no_weights(path))
        file = open_plain(path / WEIGHTS_FILE)
        try:
            return AdapterFolder(path, Theirs(config, _tensors(file, path / WEIGHTS_FILE)), file)
        except BaseException:
            file.close()
            raise


def write_adapter(target: Path, adapter: Theirs) -> None:
    """Write a new folder, published by one rename; one tensor is in memory at a time.

    Raises:
        ConfigError: `target` exists and is not an empty folder.
        StorageError: The folder cannot be written.
    """
    # Wide types come first, so that each tensor starts at a multiple of the size of its values.
    tensors = sorted(adapter.tensors.items(), key=lambda one: (-one[1].dtype.itemsize, one[0]))
    with storage_errors(f"writing the adapter {target}"), new_folder(target) as folder:
        write_plain(
            folder / WEIGHTS_FILE,
            [PlainTensor(name, values.dtype, values.shape, [values.load]) for name, values in tensors],
        )
        write_json(folder / CONFIG_FILE, adapter.config)


def _no_config(path: Path) -> str:
    inside = sorted(file.parent.name for file in path.glob(f"*/{CONFIG_FILE}"))
    if inside:
        return f"{path} holds no {CONFIG_FILE}, but several adapters; name one of them: {first_of(inside, 5)}"
    if (path / "config.json").is_file():
        return f"{path} holds a whole model and no adapter; import it without --base"
    return f"{path} holds no {CONFIG_FILE}; name the folder that an adapter was downloaded to or saved in"


def _no_weights(path: Path) -> str:
    if (path / PICKLED).exists():
        return (
            f"{path} holds its tensors as a pickle ({PICKLED}), which can run any code when it is opened; it was not "
            f"opened. If you trust where it came from, convert it with PEFT: PeftModel.from_pretrained(MODEL, "
            f"{str(path)!r}).save_pretrained(DIR) writes {WEIGHTS_FILE}; then import DIR"
        )
    return f"{path} holds no {WEIGHTS_FILE}; the download is incomplete"


def _tensors(file: TensorFile, path: Path) -> dict[str, Values]:
    found = {}
    for name, slot in file.slots.items():
        if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise CheckpointError(f"{path} holds a tensor with a strange name: {name[:100]!r}")
        if slot.dtype not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{path}: {name} is of type {slot.dtype}; only tensors of type {', '.join(WEIGHT_TYPES)} are read"
            )
        if prod(slot.shape) == 0:
            raise CheckpointError(f"{path}: {name} is empty; it was saved from a model that was not gathered")
        found[name] = _lazy(file, name, WEIGHT_TYPES[slot.dtype], slot.shape)
    if not found:
        raise CheckpointError(f"{path} holds no tensor; download it again")
    return found


def _lazy(file: TensorFile, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Values:
    def load() -> Tensor:
        values = torch.empty(shape, dtype=dtype)
        file.read_into(name, whole(shape), values)
        return values

    return Values(dtype, shape, load)


def kept_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that an export writes again: where the base came from."""
    names = ("base_model_name_or_path", "revision")
    return {name: config[name] for name in names if isinstance(config.get(name), str)}
