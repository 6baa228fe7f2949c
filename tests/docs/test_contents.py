"""Every page that is written by hand is in a table of contents, and has one title."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import pytest

from docs.generator.pages import REPOSITORY, pages_of, place

FIRST = "index.md"


def entries(page: str, text: str) -> set[str]:
    """Return the pages in the tables of contents of a page."""
    lines = [
        line
        for block in re.findall(r"^```{toctree}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.split("\n")
    ]
    names = [re.sub(r".*<(.+)>$", r"\1", line) for line in lines if line and not line.startswith(":")]
    return {os.path.normpath(PurePosixPath(page).parent / f"{name}.md") for name in names}


def test_every_page_is_in_the_contents() -> None:
    texts = {str(place(path)): (REPOSITORY / path).read_text() for path in pages_of(REPOSITORY)}
    reached, fresh = {FIRST}, {FIRST}
    while fresh:
        fresh = set().union(*(entries(page, texts[page]) for page in fresh if page in texts)) - reached
        reached |= fresh
    assert set(texts) - reached == set(), "add them to a toctree in docs/index.md"
    assert {page for page in reached - set(texts) if "*" not in page} == set(), (
        "these are in a toctree and are no pages"
    )


@pytest.mark.parametrize("path", pages_of(REPOSITORY), ids=str)
def test_a_page_has_one_title(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / path).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
