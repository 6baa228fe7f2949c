"""docs/bugs_that_cannot_happen_here.md: each entry has a public thread, and tests and planted bugs that exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.mutations.bugs import BUGS
from tests.test_documentation import REPOSITORY

PAGE = REPOSITORY / "docs/bugs_that_cannot_happen_here.md"
ENTRIES = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@functools.cache
def names_in(path: Path) -> set[str]:
    """Return the names of a file's tests, without importing it."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_page_has_entries() -> None:
    assert len(ENTRIES) >= 15


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_cites_a_thread_and_names_its_number(entry: str) -> None:
    text = re.sub(r"\s+", " ", ENTRIES[entry])
    cited = re.findall(
        r"\[(?:[\w.-]+/[\w.-]+)?#(\d+)\]\(https://github\.com/[\w.-]+/[\w.-]+/(?:pull|issues)/(\d+)\)", text
    )
    assert cited
    assert all(shown == linked for shown, linked in cited)
    assert text.count("github.com") == len(cited)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_tests_that_an_entry_names_exist(entry: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ENTRIES[entry])
    assert named
    assert not [(path, name) for path, name in named if name not in names_in(REPOSITORY / path)]


def test_the_tests_that_the_introduction_names_exist() -> None:
    introduction = PAGE.read_text().partition("\n### ")[0]
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", introduction)
    assert named
    assert all(name in names_in(REPOSITORY / path) for path, name in named)


def test_the_bugs_that_are_said_to_be_planted_are() -> None:
    text = re.sub(r"\s+", " ", PAGE.read_text())
    lines = re.findall(r"- planted: (.*?)(?= - | ##|$)", text)
    named = {name for line in lines for name in re.findall(r"\*(.+?)\*", line)}
    assert len(named) > 10
    assert named <= {bug.name for bug in BUGS}
