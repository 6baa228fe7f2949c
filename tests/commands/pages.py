"""The pages of the documentation, and the commands that their blocks of bash show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
    *sorted(REPOSITORY.glob("examples/**/*.md")),
)
_PROGRAMS = "scaling|python3|torchrun|pip|sudo|pytest"


def name_of(path: Path) -> str:
    """Return a page as tests and tables name it."""
    return path.relative_to(REPOSITORY).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands_of(path: Path) -> list[str]:
    """Return the commands of a page in their order, each as it would be typed."""
    return [command for block in blocks(path, "bash") for command in split(block)]


def indented(path: Path) -> list[str]:
    """Return the lines of a page that are set as code by their indentation and begin like a command."""
    return re.findall(rf"^    ((?:{_PROGRAMS}) [^\n]*)$", prose(path), re.MULTILINE)


def split(block: str) -> Iterator[str]:
    """Yield the commands of a block. One may go over several lines; two that are joined by && are two."""
    lines = iter(block.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        text = line
        while text.endswith("\\") or _is_open(text):
            text += f"\n{next(lines)}"
        if document := re.search(r"<<'(\w+)'", line):
            for more in lines:
                text += f"\n{more}"
                if more == document[1]:
                    break
            yield text
        else:
            yield from _joined_by_and(text)


def _is_open(text: str) -> bool:
    """Return whether a quotation goes on in the next line."""
    try:
        shlex.split(text)
    except ValueError:
        return True
    return False


def _joined_by_and(text: str) -> Iterator[str]:
    command = ""
    for part in text.split(" && "):
        command = f"{command} && {part}" if command else part
        if not _is_open(command):
            yield command.removeprefix("\\\n").strip()
            command = ""
