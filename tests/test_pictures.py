"""The pictures of the documentation are those that the library draws, and every one is shown."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.pictures.draw import FOLDER, PICTURES, main
from tests.test_documentation import REPOSITORY, blocks


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_the_library_draws(name: str) -> None:
    drawn = PICTURES[name]()
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "run python3 -m docs.pictures.draw"
    root = ElementTree.fromstring(drawn)
    assert float(root.get("width", "inf")) <= 800  # about a column of text on the site


def test_every_picture_is_drawn_and_shown_with_words_for_who_cannot_see_it() -> None:
    files = {path.stem for path in FOLDER.glob("*.svg")}
    pages = "".join(path.read_text() for path in (REPOSITORY / "docs").rglob("*.md"))
    shown = dict(re.findall(r"!\[([^\]]*)\]\(\S*pictures/(\w+)\.svg\)", pages))
    assert files == set(PICTURES) == set(shown.values())
    assert all(len(words) > 20 for words in shown)


def test_the_command_writes_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docs.pictures.draw.PICTURES", {"a": lambda: "<svg/>\n"})
    main(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_the_code_that_is_shown_draws() -> None:
    shown = [
        block for page in sorted((REPOSITORY / "docs/parallelism").glob("*.md")) for block in blocks(page, "python")
    ]
    assert len(shown) == 2
    for block in shown:
        names: dict[str, str] = {}
        exec(block, names)
        assert ElementTree.fromstring(names["text"]).get("role") == "img"
