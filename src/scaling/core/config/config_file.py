"""Read a configuration file once, and hand its text to the processes of the run."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scaling.core.config.yaml_text import MAX_BYTES
from scaling.core.errors import ConfigError, StorageError


def read_config(path: Path | str, *, copy: Path | None = None) -> str:
    """Return the text of a configuration file, or of its `copy` made by `handed_on`.

    A copy of another file is not used: a process of a run may itself start a run with another configuration. A file
    that cannot be read is a `ConfigError`.
    """
    if copy is not None and (text := _copied(path, copy)) is not None:
        return text
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_BYTES} bytes; is it a configuration?")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None


@contextlib.contextmanager
def handed_on(path: Path | str, text: str) -> Iterator[Path]:
    """Write `text`, which was read from `path`, to a file only this user can read; yield its path, then remove it.

    The file at `path` may be a pipe that has been read, or may have been changed or deleted since.
    """
    with contextlib.ExitStack() as kept:
        try:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="scaling_config_"))  # for this user only
            copy = Path(folder) / "read.json"
            copy.write_text(json.dumps({"path": str(path), "text": text}), encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"the configuration cannot be kept for the processes of the run: {error}; free space in "
                f"{tempfile.gettempdir()}, or set TMPDIR to another folder"
            ) from error
        yield copy


def _copied(path: Path | str, copy: Path) -> str | None:
    try:
        kept = json.loads(copy.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {copy}, where the runner kept the configuration {path} for its processes: {error}; does "
            "something delete temporary files?"
        ) from None
    text: str | None = kept["text"] if kept["path"] == str(path) else None
    return text
