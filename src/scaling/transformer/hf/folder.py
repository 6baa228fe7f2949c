"""A model folder of Hugging Face: its contents, read without trust, and refused where they are not plain weights."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final

from scaling.core import (
    CheckpointError,
    ConfigError,
    FileEntry,
    first_of,
    open_plain,
    storage_errors,
    unique_keys,
)

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
GENERATION_FILE: Final = "generation_config.json"
LENGTH: Final = "max_position_embeddings"
"""The field with the length of the longest text that a model is made for."""

MAX_JSON_BYTES: Final = 64 * 2**20
"""Far larger than any index."""
MAX_NAME_LENGTH: Final = 1000

_SHARD_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MOST_DIGITS: Final = 300
"""Maximum number of digits of an integer, so that it is within the range of floats."""
_NAMED: Final = 5
"""Maximum number of names in a message."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a folder, as described in the header of its file."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose configuration can be read and whose files are consistent."""

    path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    """generation_config.json; empty where there is none."""
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, FileEntry]
    """Entries that show later whether a file is still the same."""

    @property
    def config_file(self) -> Path:
        """Return the path of the configuration, for messages."""
        return self.path / CONFIG_FILE


def read_folder(path: Path) -> ModelFolder:
    """Read configuration, index and headers, but no tensor.

    Raises:
        ConfigError: There is no such folder or no configuration in it.
        CheckpointError: The weights are missing, not plain, truncated, or different from the index.
        StorageError: Something cannot be read.
    """
    with storage_errors(f"reading the model folder {path}"):
        if not path.is_dir():
            raise ConfigError(
                f"{path} is {'a file' if path.exists() else 'not there'}; name the folder of a downloaded model, with "
                f"{CONFIG_FILE} and {WEIGHTS_FILE} (`hf download NAME --local-dir DIR` makes one); nothing is "
                "downloaded here"
            )
        for name in (CONFIG_FILE, GENERATION_FILE, WEIGHTS_FILE, INDEX_FILE):
            require_within(path, path / name)
        config = read_object(path / CONFIG_FILE)
        if config is None:
            adapter = (path / "adapter_config.json").is_file()
            raise ConfigError(
                f"{path} holds no {CONFIG_FILE}"
                + (
                    "; it is an adapter: import its model first, and then the adapter with --base"
                    if adapter
                    else "; name the folder that a model was downloaded to or saved in"
                )
            )
        generation = read_object(path / GENERATION_FILE)
        weight_map = _weight_map(path)
        tensors, files = _headers(path, weight_map)
        return ModelFolder(path, config, generation or {}, tensors, files)


def require_within(folder: Path, path: Path) -> None:
    """Refuse a link that leads nowhere, or out of a model folder to a place other than the download cache.

    Otherwise a folder of unknown origin could have any file of this machine copied beside the checkpoint.

    Raises:
        CheckpointError: `path` is such a link.
    """
    if not path.exists():
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to {os.readlink(path)}, where nothing is; download the file again")
        return
    real, home = path.resolve(), folder.resolve()
    shared = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if real.is_relative_to(home) or real.is_relative_to(shared):
        return
    if real.parent.name == "blobs" and real.parents[1].name.startswith("models--"):
        return  # older downloads link to their cache like this
    raise CheckpointError(
        f"{path} leads to {real}, outside of the folder, and was not read; put the file itself there if it belongs to "
        "the model"
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is no such file.

    Raises:
        ConfigError: The file does not hold a JSON object, is not a regular file, or is too large.
    """
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a regular file; copy it again from where the model came")
        if status.st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path} has {status.st_size} bytes; at most {MAX_JSON_BYTES} are accepted")
        found = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=unique_keys,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); copy it again from where the model came") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object; copy it again from where the model came")
    return found


def read_stored_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file that lies with checkpoints, or None where there is no such file.

    Raises:
        CheckpointError: It is none that `read_object` accepts.
    """
    try:
        return read_object(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:_MOST_DIGITS]} is no number that can be computed with")
    return value


def _bounded(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(text)} digits")
    return int(text)


def _weight_map(path: Path) -> dict[str, str] | None:
    """Return the file of each tensor, or None where all are in one; refuse files that are missing or not plain."""
    if (path / WEIGHTS_FILE).exists():
        return None
    index = read_object(path / INDEX_FILE)
    if index is None:
        raise CheckpointError(_no_weights(path))
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path / INDEX_FILE} has no weight_map; copy it again from where the model came")
    for name, file in found.items():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise CheckpointError(
                f"{path / INDEX_FILE}: weight_map says that {name[:100]!r} is in {str(file)[:100]!r}; only plain names "
                "of safetensors files in the same folder are read, such as model-00001-of-00002.safetensors"
            )
    for file in sorted(set(found.values())):
        require_within(path, path / file)
    missing = sorted({file for file in found.values() if not (path / file).exists()})
    if missing:
        raise CheckpointError(
            f"{path} is incomplete: {INDEX_FILE} names {first_of(missing, _NAMED)}, but {_are_not(missing)} there; "
            "download the missing files"
        )
    return found


def _no_weights(path: Path) -> str:
    """Return the reason why a folder without safetensors files cannot be read, and how to convert it."""
    save = "save_pretrained"
    pickled = sorted({file.name for pattern in _PICKLES for file in path.glob(pattern)})
    gguf = sorted(file.name for file in path.glob("*.gguf"))
    others = sorted(file.name for file in path.glob("*.safetensors"))
    if pickled:
        return (
            f"{path} holds its weights as a pickle ({first_of(pickled, _NAMED)}), which can run any code when it is "
            "opened; it was not opened. If you trust where it came from, convert it with transformers: "
            f"AutoModelForCausalLM.from_pretrained({str(path)!r}).{save}(DIR) writes {WEIGHTS_FILE}; then import DIR"
        )
    if gguf:
        return (
            f"{path} holds its weights as {first_of(gguf, _NAMED)}, which are quantized; "
            f"AutoModelForCausalLM.from_pretrained({str(path)!r}, gguf_file={gguf[0]!r}) of transformers reads them "
            f"and {save}(DIR) writes {WEIGHTS_FILE}; then import DIR"
        )
    if others:
        return (
            f"{path} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}, but {first_of(others, _NAMED)}; rename a single "
            f"file of all weights to {WEIGHTS_FILE}, or download the index as well"
        )
    return f"{path} holds no weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}; download them"


def _headers(path: Path, weight_map: Mapping[str, str] | None) -> tuple[dict[str, StoredTensor], dict[str, FileEntry]]:
    """Read the headers of all files; refuse files that do not hold exactly the tensors in the index."""
    tensors: dict[str, StoredTensor] = {}
    files: dict[str, FileEntry] = {}
    for file in [WEIGHTS_FILE] if weight_map is None else sorted(set(weight_map.values())):
        require_within(path, path / file)
        with open_plain(path / file) as opened:
            files[file] = opened.entry
            slots = opened.slots
        for name, slot in slots.items():
            if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
                raise CheckpointError(f"{path / file} holds a tensor with a strange name: {name[:100]!r}")
            said = file if weight_map is None else weight_map.get(name)
            if said != file:
                says = "does not list it" if said is None else f"says that it is in {said}"
                raise CheckpointError(
                    f"{path / file} holds the tensor {name!r}, but {INDEX_FILE} {says}; download both again"
                )
            tensors[name] = StoredTensor(file, slot.dtype, slot.shape)
    if absent := sorted(name for name in weight_map or () if name not in tensors):
        file = (weight_map or {})[absent[0]]
        raise CheckpointError(
            f"{path / file} lacks {first_of(absent, _NAMED)}, which {INDEX_FILE} says to be there; download both again"
        )
    return tensors, files


def end_token_ids(folder: ModelFolder) -> tuple[int, ...]:
    """Return the tokens that end a text, as the model's configuration names them; the end of a document comes first.

    Those in config.json come first; generation_config.json adds the ends of turns. Names of tokens prove nothing.
    """
    found: dict[int, None] = {}
    for config, source in ((folder.config, CONFIG_FILE), (folder.generation, GENERATION_FILE)):
        given = config.get("eos_token_id")
        for value in given if isinstance(given, list) else [given]:
            if value is None:
                continue
            if type(value) is not int or value < 0:
                raise ConfigError(f"{folder.path / source}: eos_token_id is {given!r}; it has to be token ids, or null")
            found[value] = None
    return tuple(found)


def _are_not(names: list[str]) -> str:
    return "it is not" if len(names) == 1 else "they are not"
