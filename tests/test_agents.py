"""AGENTS.md and llms.txt are what docs/agents.py makes of the rest of the repository."""

from __future__ import annotations

import re

from docs.agents import files, llms, packages, pages, plain, summary_of
from tests.test_documentation import REPOSITORY


def test_both_files_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"run python3 docs/agents.py: {path.name} is out of date"


def test_llms_txt_has_the_form_of_llmstxt_org() -> None:
    lines = llms().splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].startswith("> ")
    assert sum(line.startswith("# ") for line in lines) == 1
    entries = [line for line in lines if line.startswith("- ")]
    assert all(re.fullmatch(r"- \[.+?\]\(.+?\): .+[.?]", line) for line in entries)


def test_every_page_is_listed_once_and_is_there() -> None:
    listed = [page for group in pages().values() for page in group]
    assert len(set(listed)) == len(listed)
    assert set(REPOSITORY.glob("docs/**/*.md")) - {REPOSITORY / "docs/index.md"} <= set(listed)
    assert all(page.exists() for page in listed)


def test_every_package_is_on_the_map() -> None:
    folders = {str(path.parent.relative_to(REPOSITORY)) for path in (REPOSITORY / "src").rglob("__init__.py")}
    assert {folder for folder, _ in packages()} == folders


def test_a_summary_is_plain_text_of_whole_sentences() -> None:
    assert plain("**Bold** and [a\nlink](page.md#there).") == "Bold and a link."
    assert summary_of(REPOSITORY / "docs/glossary.md").startswith("The words of this project")
