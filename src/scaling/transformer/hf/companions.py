"""The files that accompany a model's weights: tokenizer, special tokens, chat templates, generation defaults."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scaling.core import CheckpointError, list_steps, storage_errors, write_atomically
from scaling.transformer.data.end_token import ORIGIN_FILE, TOKENIZER_OF_A_MODEL
from scaling.transformer.data.tokenizer import TOKENIZER_FILE, tokenizer_digest
from scaling.transformer.hf.folder import GENERATION_FILE, read_object, read_stored_object, require_within

TEMPLATES: Final = "additional_chat_templates"
"""Folder of named chat templates."""
ACCOMPANYING: Final = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", GENERATION_FILE)
"""Files that have the same name in a model folder and beside checkpoints."""
OF_CHECKPOINTS: Final = (*ACCOMPANYING, ORIGIN_FILE)
_ALL_TEMPLATES: Final = f"{TEMPLATES}/*.jinja"
MAX_BYTES: Final = 256 * 2**20
"""Far larger than any tokenizer file."""
MAX_TEMPLATES: Final = 100

_TEMPLATE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}\.jinja")


@dataclass(frozen=True)
class Companions:
    """The contents of the files beside the weights."""

    tokenizer: bytes | None
    """In the format of the `tokenizers` library."""
    others: Mapping[str, bytes] = field(default_factory=dict)
    """The other files, by their path within the folder."""

    def write(self, folder: Path, *, tokenizer_name: str, replace: bool = False, doing: str | None = None) -> None:
        """Write the files that do not exist yet; a different tokenizer is replaced.

        `doing` describes the operation in the error if writing fails. `replace`: files that an
        interrupted import has left in the folder are removed first.

        Raises:
            StorageError: A file cannot be written.
        """
        named = {tokenizer_name: self.tokenizer} if self.tokenizer is not None else {}
        with storage_errors(doing or f"writing tokenizer and templates to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            if replace and (folder / ORIGIN_FILE).is_file():
                for path in (
                    *(folder / name for name in (tokenizer_name, *ACCOMPANYING)),
                    *folder.glob(_ALL_TEMPLATES),
                ):
                    path.unlink(missing_ok=True)
            # The origin is written first: it shows a later import that these files come from an import.
            for name, content in sorted((named | dict(self.others)).items(), key=lambda one: one[0] != ORIGIN_FILE):
                path = folder / name
                replaced = name == tokenizer_name or (replace and name == ORIGIN_FILE)
                if path.exists() and (not replaced or path.read_bytes() == content):
                    continue
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, content)


def companions_of_model(folder: Path) -> Companions:
    """Return the companions in a model folder of Hugging Face, which is read without trust.
    Raises:
        ConfigError: A `.json` file does not hold a JSON object.
        CheckpointError: A file is not a regular file, leads out of the folder, or is too large.
        StorageError: A file cannot be read.
    """
    with storage_errors(f"reading tokenizer and templates in {folder}"):
        for name in (TOKENIZER_OF_A_MODEL, TEMPLATES):
            require_within(folder, folder / name)
        found = Companions(_content(folder / TOKENIZER_OF_A_MODEL), dict(_others(folder, ACCOMPANYING)))
        for name in found.others:
            if name.endswith(".json"):
                read_object(folder / name)  # refuses a file without a JSON object
        return found


def companions_of_checkpoints(folder: Path) -> Companions:
    """Return the companions beside the step folders of a directory; the tokenizer may be a link, as it always could.

    Raises the errors of `companions_of_model`, except `ConfigError`.
    """
    with storage_errors(f"reading tokenizer and templates in {folder}"):
        return Companions(_content(folder / TOKENIZER_FILE), dict(_others(folder, OF_CHECKPOINTS)))


def companions_of_predecessor(tokenizer_file: Path) -> Companions:
    """Return the tokenizer of a checkpoint of the predecessor, which has no other companions."""
    with storage_errors(f"reading {tokenizer_file}"):
        return Companions(_content(tokenizer_file))


def companions_of_tokenizer(file: Path) -> Companions:
    """Return a tokenizer used for training, with the files beside it that belong to the same model.

    Anything there that is not a plain file is skipped: training needs none of it.
    """
    of_import = file.name == TOKENIZER_FILE and (file.parent / ORIGIN_FILE).exists()
    names = OF_CHECKPOINTS if of_import else ACCOMPANYING if file.name == TOKENIZER_OF_A_MODEL else ()
    others = dict(_others(file.parent, names, strict=False)) if names else {}
    return Companions(file.read_bytes(), others)


def require_place(companions: Companions, source: Path, target: Path) -> None:
    """Refuse a folder whose checkpoints belong to another tokenizer or model: all checkpoints in a folder share one.

    `source` is the folder that the companions come from.
    """
    kept = target / TOKENIZER_FILE
    with storage_errors(f"comparing what lies beside {source} with {target}"):
        if not list_steps(target):
            return
        if companions.tokenizer is not None and kept.is_file() and kept.read_bytes() != companions.tokenizer:
            own = next(path for path in (source / TOKENIZER_FILE, source / TOKENIZER_OF_A_MODEL) if path.is_file())
            raise CheckpointError(
                f"{target} holds checkpoints of another tokenizer: its {TOKENIZER_FILE} has the digest "
                f"{tokenizer_digest(kept)}, {own} has {tokenizer_digest(own)}; name another folder to write to"
            )
        origin = companions.others.get(ORIGIN_FILE)
        if origin is not None and (target / ORIGIN_FILE).is_file() and (target / ORIGIN_FILE).read_bytes() != origin:
            raise CheckpointError(
                f"{target} holds checkpoints of another model: its {ORIGIN_FILE} is another one; name another folder "
                "to write to"
            )


@dataclass(frozen=True)
class Origin:
    """Facts about a model that an import keeps for an export to write back: `ORIGIN_FILE` beside the step folders."""

    model_type: str
    end_token_ids: tuple[int, ...] = ()
    """The token that ends a document comes first."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json that change nothing, or only restate a default."""

    def encode(self) -> bytes:
        """Return the content of the file."""
        values = {"model_type": self.model_type, "eos_token_id": list(self.end_token_ids), "config": dict(self.config)}
        return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def read_origin(folder: Path) -> Origin | None:
    """Return the origin that an import has left beside the step folders of a directory, or None where there is none.

    Raises:
        CheckpointError: The file does not hold what an import writes.
    """
    match read_stored_object(folder / ORIGIN_FILE):
        case {"model_type": str(model_type), "eos_token_id": list(ends), "config": dict(config)}:
            return Origin(model_type, tuple(end for end in ends if type(end) is int), config)
        case None:
            return None
    raise CheckpointError(f"{folder / ORIGIN_FILE} is not what an import writes; import the model again")


def _others(folder: Path, names: Sequence[str], *, strict: bool = True) -> Iterator[tuple[str, bytes]]:
    """Yield the folder's regular files of bounded size and with plain names; nothing else is copied."""
    templates = folder / TEMPLATES
    named: list[str] = []
    if templates.is_dir():
        named = sorted(name for name in os.listdir(templates) if _TEMPLATE.fullmatch(name))
        if strict and len(named) > MAX_TEMPLATES:
            raise CheckpointError(f"{templates} holds {len(named)} templates; at most {MAX_TEMPLATES} are taken")
    for name in (*names, *(f"{TEMPLATES}/{name}" for name in named[:MAX_TEMPLATES])):
        try:
            require_within(folder, folder / name)
            content = _content(folder / name)
        except CheckpointError:
            if strict:
                raise
            continue
        if content is not None:
            yield name, content


def _content(path: Path) -> bytes | None:
    """Return the content of a regular file, None where there is none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file; replace it, or remove it")
    if status.st_size > MAX_BYTES:
        raise CheckpointError(f"{path} has {status.st_size} bytes; at most {MAX_BYTES} are accepted")
    return path.read_bytes()
