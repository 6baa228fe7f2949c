"""A corpus of real text that every machine has: the source code and documentation of Python's standard library."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tokenize import detect_encoding

from scaling.core import DataError, MemoryMapDatasetBuilder, write_atomically
from scaling.transformer.data.built_once import built_once
from scaling.transformer.data.progress import ProgressCallback, silent
from scaling.transformer.data.sampling import thin
from scaling.transformer.data.shards import token_dtype
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders of the library that hold no part of it, or tests with deliberately odd contents."""

DOCUMENTS_AT_ONCE = 32
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CorpusLimits:
    """Sizes of the corpus and its tokenizer."""

    vocab_size: int = 8192
    max_bytes: int | None = None
    """Most text in the corpus; whole documents are left out evenly to stay within it. None: all, about 13 MB."""
    tokenizer_bytes: int = 3 << 20
    """Text of the corpus that the tokenizer is trained on."""


@dataclass(frozen=True)
class CorpusPaths:
    """Paths of a corpus."""

    prefix: Path
    """Prefix of the memory map."""
    tokenizer: Path


def build_stdlib_corpus(
    directory: Path, limits: CorpusLimits | None = None, *, progress: ProgressCallback = silent
) -> CorpusPaths:
    """Return the corpus in a folder of `directory`, building it where it is missing or not intact.

    Any number of processes may call this at once: one builds, the others wait for it. The corpus appears by one rename;
    the next build removes the remains of one that was killed.

    Raises:
        DataError: This Python comes without the sources of its standard library.
        StorageError: The folder cannot be written.
    """
    limits = limits or CorpusLimits()
    identity = {"python": sys.version, "implementation": sys.implementation.name, "format": 1, **asdict(limits)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = f"stdlib-{sys.version_info.major}.{sys.version_info.minor}-{limits.vocab_size}-{digest[:8]}"

    def build(building: Path) -> None:
        _build(building, limits, progress)
        _write_manifest(building, identity)

    return _paths(
        built_once(
            directory / name,
            intact=lambda final: _intact(final, identity),
            build=build,
            what="the corpus",
            progress=progress,
        )
    )


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """Yield name and text of each document: the modules of the library, sorted by path, then its help topics."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(name.parts) and name.parts[0] != "pydoc_data":
            text = _source_text(path)
            if text is not None:
                yield name.as_posix(), text
    yield from sorted(_help_topics().items())


def _source_text(path: Path) -> str | None:
    """Return the text of a module in the encoding it declares, None where it is empty or not text."""
    try:
        content = path.read_bytes()
        encoding, _ = detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding).replace("\r\n", "\n")
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    return text if text and "\0" not in text else None


def _help_topics() -> Mapping[str, str]:
    """Return the texts of Python's `help()`, where this Python has them."""
    try:
        topics = import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return {}
    return {f"topics/{name}": str(text) for name, text in topics.items()}


def _build(directory: Path, limits: CorpusLimits, progress: ProgressCallback) -> None:
    texts = [text for _, text in stdlib_documents()]
    size = sum(map(len, texts))
    if limits.max_bytes is not None and limits.max_bytes < size:
        texts = list(thin(texts, total=size, budget=limits.max_bytes))
        size = sum(map(len, texts))
    if not texts:
        raise DataError(
            f"this Python ({sys.executable}) comes without the sources of its standard library, of which the corpus "
            "'python_stdlib' is made; name your own data in data.data_prefixes (see `scaling data tokenize`)."
        )
    progress("training the tokenizer", 0, 1)
    tokenizer = train_tokenizer(thin(texts, total=size, budget=limits.tokenizer_bytes), limits.vocab_size)
    progress("training the tokenizer", 1, 1)
    paths = _paths(directory)
    tokenizer.save(paths.tokenizer)
    tokenizer = Tokenizer.from_str(tokenizer.to_str(), plain_text=True)
    end = tokenizer.eos_token_id
    dtype = token_dtype(tokenizer.vocab_size)
    with MemoryMapDatasetBuilder(paths.prefix, dtype, tokenizer_sha256=tokenizer.sha256, eod_token_id=end) as builder:
        for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
            batch = texts[start : start + DOCUMENTS_AT_ONCE]
            for ids in tokenizer.encode_batch(batch):
                builder.add([*ids, end])
            progress("tokenizing the corpus", start + len(batch), len(texts))


def _paths(directory: Path) -> CorpusPaths:
    return CorpusPaths(directory / "text", directory / "tokenizer.json")


def _write_manifest(directory: Path, identity: Mapping[str, object]) -> None:
    files = {path.name: _sha256(path) for path in sorted(directory.iterdir())}
    content = json.dumps({"made_of": identity, "sha256": files}, indent=2)
    write_atomically(directory / MANIFEST, content.encode())


def _intact(directory: Path, identity: Mapping[str, object]) -> bool:
    """Return whether a corpus exists, with every file as it was written (some 10 MB to read)."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = {path.name: _sha256(path) for path in directory.iterdir() if path.name != MANIFEST}
    except (OSError, ValueError):
        return False
    return bool(manifest == {"made_of": identity, "sha256": files})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
