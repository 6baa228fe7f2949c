"""The `<prefix>.meta.json` of a memory map: what its other files must hold, and digests to prove that they do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaling.core.data.documents import damaged, file_size, unreadable
from scaling.core.errors import DataError

FORMAT: Final = "scaling memory map"
VERSION: Final = 1
RECORDS_VERSION: Final = 2
"""Version with weights: a reader that knows only version 1 would take records for documents that may be cut."""
_CHECKSUM: Final = "meta_sha256"
_OF_RECORDS: Final = ("weights_dtype", "weights_sha256", "made_by")


@dataclass(frozen=True)
class MemoryMapMeta:
    """A memory map's description of itself. Fields that are None were not recorded by earlier writers (version 0)."""

    dtype: str
    index_dtype: str
    document_count: int
    version: int = VERSION
    token_count: int | None = None
    max_token: int | None = None
    dropped_documents: int | None = None
    """Documents without tokens, which the builder leaves out."""
    index_sha256: str | None = None
    tokens_sha256: str | None = None
    tokenizer_sha256: str | None = None
    eod_token_id: int | None = None
    """The token that each document ends with; None where there is no such token, or it was not recorded."""
    weights_dtype: str | None = None
    """The type of the weights in a memory map of records, one for each token; None: documents have no weights."""
    weights_sha256: str | None = None
    made_by: dict[str, str] | None = None
    """How the records were made."""

    def to_json(self) -> str:
        """Return the file's text, which carries a digest of itself."""
        content = {"format": FORMAT, **asdict(self)}
        if self.weights_dtype is None:
            content = {key: value for key, value in content.items() if key not in _OF_RECORDS}
        return json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> MemoryMapMeta:
        """Read and check the file at `path`; anything unexpected is a `DataError`."""
        file_size(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:  # malformed JSON, not UTF-8, nested without end
            raise damaged(path, f"it is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise damaged(path, "it does not hold a JSON object")
        return cls._recorded(path, content) if "format" in content else cls._earlier(path, content)

    @classmethod
    def _recorded(cls, path: Path, content: dict[str, Any]) -> MemoryMapMeta:
        if content["format"] != FORMAT:
            raise DataError(
                f"{path} describes a {content['format']!r}, not a {FORMAT!r}; name the prefix of a memory map"
            )
        version = _count(path, content, "version")
        if version not in (VERSION, RECORDS_VERSION):
            raise DataError(
                f"{path} has version {version}, and this library reads {VERSION} and {RECORDS_VERSION}; use the "
                "version that wrote it"
            )
        if content.get(_CHECKSUM) != _checksum({key: value for key, value in content.items() if key != _CHECKSUM}):
            raise damaged(path, "its content does not match its own digest, so it was edited or corrupted")
        return cls(
            dtype=content["dtype"],
            index_dtype=content["index_dtype"],
            document_count=_count(path, content, "document_count"),
            version=version,
            token_count=_count(path, content, "token_count"),
            max_token=_count(path, content, "max_token"),
            dropped_documents=_count(path, content, "dropped_documents"),
            index_sha256=content["index_sha256"],
            tokens_sha256=content["tokens_sha256"],
            tokenizer_sha256=content["tokenizer_sha256"],
            eod_token_id=None if content.get("eod_token_id") is None else _count(path, content, "eod_token_id"),
            **({name: content[name] for name in _OF_RECORDS} if version == RECORDS_VERSION else {}),
        )

    @classmethod
    def _earlier(cls, path: Path, content: dict[str, Any]) -> MemoryMapMeta:
        for name in ("dtype", "index_dtype", "document_count"):
            if name not in content:
                raise DataError(
                    f"{path} lacks {name!r}, so it does not describe a memory map of tokens; check the prefix"
                )
        for name in ("dtype", "index_dtype"):
            integer_dtype(path, content[name])
        return cls(
            dtype=content["dtype"],
            index_dtype=content["index_dtype"],
            document_count=_count(path, content, "document_count"),
            version=0,
        )


def integer_dtype(path: Path, name: object) -> np.dtype[Any]:
    """Return the little-endian integer type called `name` in the file at `path`."""
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in "iu":
        raise damaged(path, f"{name!r} is not an integer type such as 'int32'")
    little_endian: np.dtype[Any] = dtype.newbyteorder("<")
    return little_endian


def weight_dtype(path: Path, name: object) -> np.dtype[Any]:
    """Return the type of weights called `name` in the file at `path`."""
    if name not in ("uint8", "float32"):
        raise damaged(path, f"weights are of type {name!r}, which is neither 'uint8' nor 'float32'")
    return np.dtype("u1" if name == "uint8" else "<f4")


def _count(path: Path, content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if type(value) is not int or value < 0:
        raise damaged(path, f"{name} is {value!r}, not a number from 0 on")
    return value


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
