"""What a page would load from another machine is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.generator.self_contained import check, foreign


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://x.org/a.js"></script>',
        '<link rel="stylesheet" href="//x.org/a.css">',
        '<img src="http://x.org/a.png">',
    ],
)
def test_what_a_page_loads_is_found(text: str) -> None:
    assert len(foreign(text, ".html")) == 1


@pytest.mark.parametrize("text", ["@import 'https://x.org/a.css';", 'a { background: url("https://x.org/a.png") }'])
def test_what_a_style_sheet_loads_is_found(text: str) -> None:
    assert len(foreign(text, ".css")) == 1


def test_links_and_files_beside_a_page_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://x.org"></a><img src="a.png"><script src="_static/a.js"></script>'
    )
    (tmp_path / "a.css").write_text("a { background: url(a.png) } b { background: url('data:image/svg+xml;x') }")
    assert not list(check(tmp_path))
    (tmp_path / "b.html").write_text('<img src="https://x.org/a.png">')
    assert list(check(tmp_path)) == ["b.html loads https://x.org/a.png"]
