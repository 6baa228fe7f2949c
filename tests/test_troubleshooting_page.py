"""docs/troubleshooting.md: each message that it quotes is one that the program has, and its links lead to headings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_documentation import REPOSITORY, blocks

PAGE = REPOSITORY / "docs/troubleshooting.md"
MESSAGES = [" ".join(block.split()) for block in blocks(PAGE, "text")]
GAP = "\0"
"""Stands for what a message has in place of a value."""


def literals(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a file, with a gap for each value in them."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)):
                yield re.sub(r"%[-.\d]*[a-z]|\{\w*\}", GAP, text)
            case ast.JoinedStr(values=values):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in values)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = sorted((REPOSITORY / "src").rglob("*.py"))
    found = {text for path in files for text in literals(ast.parse(path.read_text())) if " " in text}
    return [" ".join(text.split()) for text in found]


def is_in(message: str, texts: list[str]) -> bool:
    """Return whether a text has all parts of a message in their order, with gaps between them."""
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip(" ;.")]
    pattern = re.compile(f".*{GAP}.*".join(parts))
    return any(pattern.search(text) for text in texts)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_quoted_is_one_of_the_program(message: str, texts: list[str]) -> None:
    assert is_in(message, texts)


def test_a_message_that_nobody_writes_is_noticed(texts: list[str]) -> None:
    assert not is_in("port … on … is taken, so the processes cannot meet there", texts)
    assert not is_in("so the processes cannot meet there … is in use", texts)


def anchor(heading: str) -> str:
    """Return the name of a heading in a link, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_to_headings_lead_to_one(path: Path) -> None:
    for target, name in re.findall(r"\]\(([\w./]*\.md)?#([\w-]+)\)", path.read_text()):
        linked = path.parent / target if target else path
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
        assert name in {anchor(re.sub(r"[`*]", "", heading)) for heading in headings}, (target, name)
