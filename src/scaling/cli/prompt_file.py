"""Prompts from a file or standard input, one JSON value per line, the same for all processes of a command."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from scaling.core import ConfigError, StorageError

STANDARD_INPUT: Final = "-"
COPY_VARIABLE: Final = "SCALING_PROMPTS_COPY"
"""Set for the processes that a command starts: the path of the prompts it has read, perhaps from a pipe."""

_FORMS: Final = '{"prompt": "..."}, {"tokens": [...]} or "..."'
_KEYS: Final = frozenset({"prompt", "tokens", "seed"})
_SHOWN: Final = 40


@dataclass(frozen=True)
class Request:
    """A prompt, as text or token ids, and its own options."""

    prompt: str | list[int]
    seed: int | None = None


def read_requests(source: str, *, alone: bool = True) -> list[Request]:
    """Return the prompts of a file, or of standard input.

    `alone`: this process is the only one. Otherwise standard input, which only one process can read, is refused.
    `ConfigError` where a line is not a prompt, or there are no prompts.
    """
    if copy := os.environ.get(COPY_VARIABLE):
        return _kept(Path(copy))
    if source == STANDARD_INPUT:
        if not alone:
            raise ConfigError(
                "--prompts - reads standard input, which one process has to itself; write the prompts to a file that "
                "all processes can read"
            )
        content, name = sys.stdin.buffer.read(), "standard input"
    else:
        try:
            content, name = Path(source).read_bytes(), source
        except OSError as error:
            raise ConfigError(f"--prompts {source} cannot be read: {error.strerror}") from error
    return requests_of(content, name)


def requests_of(content: bytes, name: str) -> list[Request]:
    """Return the prompts in the lines of a file called `name`; empty lines are skipped."""
    found = [
        _request(line, f"{name}, line {number}")
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if line.strip()
    ]
    if not found:
        raise ConfigError(f"{name} has no prompts; write one a line: {_FORMS}")
    return found


@contextmanager
def kept_for_processes(requests: Sequence[Request]) -> Iterator[Mapping[str, str]]:
    """Keep prompts in a file for the processes that this one starts; yield the environment variables that name it."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="scaling_prompts_")  # for this user only
        copy = Path(folder.name) / "read.json"
        copy.write_text(json.dumps([asdict(request) for request in requests]), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the prompts cannot be kept for the processes of the command: {error}; free space in "
            f"{tempfile.gettempdir()}, or set TMPDIR to another folder"
        ) from error
    with folder:
        yield {COPY_VARIABLE: str(copy)}


def _kept(copy: Path) -> list[Request]:
    try:
        return [Request(**fields) for fields in json.loads(copy.read_text(encoding="utf-8"))]
    except OSError as error:
        raise StorageError(f"{copy}, where the prompts are kept, cannot be read: {error.strerror}") from error


def _request(line: bytes, where: str) -> Request:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where} is not UTF-8: it has the byte 0x{line[error.start]:02x} at byte {error.start}; give text in UTF-8"
        ) from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {text.strip()[:_SHOWN]!r}; write {_FORMS}") from error
    if isinstance(value, str):
        return Request(value)
    if not isinstance(value, dict) or len(value.keys() & {"prompt", "tokens"}) != 1:
        raise ConfigError(f"{where} is no prompt: {text.strip()[:_SHOWN]!r}; write {_FORMS}")
    if unknown := sorted(value.keys() - _KEYS):
        raise ConfigError(
            f"{where} has {unknown[0]!r}, which means nothing here: beside its prompt or tokens a line may have a "
            "seed; other options are for all prompts"
        )
    return Request(_prompt(value, where), _seed(value.get("seed"), where))


def _prompt(value: Mapping[str, Any], where: str) -> str | list[int]:
    if "prompt" in value:
        prompt = value["prompt"]
        if not isinstance(prompt, str):
            raise ConfigError(
                f"{where} has the prompt {prompt!r:.{_SHOWN}}, which is no text; give token ids as tokens"
            )
        return prompt
    tokens = value["tokens"]
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise ConfigError(f"{where} has the tokens {tokens!r:.{_SHOWN}}; give a list of whole numbers")
    return tokens


def _seed(seed: object, where: str) -> int | None:
    if seed is not None and type(seed) is not int:
        raise ConfigError(f"{where} has the seed {seed!r:.{_SHOWN}}; give a whole number")
    return seed
