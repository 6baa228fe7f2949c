"""Links between files of the repository become links between pages of the site."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from docs.generator.__main__ import texts
from docs.generator.pages import REPOSITORY, Site, links, shown_file


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a guide, an example with its code, and a picture."""
    for name, text in {
        "README.md": "[guide](docs/guide.md#how) and [code](examples/toy)",
        "docs/guide.md": "# Guide\n\n![what](pictures/a.svg) [run](../examples/toy/run.py) [readme](../README.md)",
        "docs/more/deep.md": "[guide](../guide.md) [gone](../gone.md) [web](https://example.org) [here](#x)",
        "docs/pictures/a.svg": "<svg/>",
        "examples/toy/README.md": "[guide](../../docs/guide.md) [all](../../src)",
        "examples/toy/run.py": 'print("```")',
        "src/one.py": "x = 1",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def pages(repository: Path) -> dict[str, str]:
    return {str(path): text for path, text in texts(repository)}


def test_docs_are_the_top_of_the_site_and_links_follow(repository: Path) -> None:
    found = pages(repository)
    assert found["README.md"] == "[guide](guide.md#how) and [code](examples/toy/README.md)"
    assert found["guide.md"] == (
        "# Guide\n\n![what](pictures/a.svg) [run](source/examples/toy/run.py.md) [readme](README.md)"
    )
    assert found["examples/toy/README.md"] == "[guide](../../guide.md) [all](../../source/src.md)"


def test_a_link_that_leads_nowhere_stays_as_it_is(repository: Path) -> None:
    page = pages(repository)["more/deep.md"]
    assert page == "[guide](../guide.md) [gone](../gone.md) [web](https://example.org) [here](#x)"


def test_what_is_linked_and_is_no_page_gets_one_that_shows_it(repository: Path) -> None:
    found = pages(repository)
    assert '````python\nprint("```")\n````' in found["source/examples/toy/run.py.md"]
    assert "- [`one.py`](src/one.py.md)" in found["source/src.md"]
    assert "x = 1" in found["source/src/one.py.md"]


def test_code_is_left_alone() -> None:
    page = PurePosixPath("docs/index.md")
    text = "`[a](glossary.md)` ``b`[c](data.md)``\n\n```text\n[d](../README.md)\n```\n[`e`](../README.md)"
    assert Site(REPOSITORY).rewritten(page, text) == text.replace("[`e`](../README.md)", "[`e`](README.md)")
    assert list(links(text)) == ["../README.md"]


def test_a_file_is_shown_whole_whatever_is_in_it() -> None:
    page = shown_file(PurePosixPath("a.md"), "````\ntext\n````")
    assert "`````text\n````\ntext\n````\n`````" in page
