"""Find what a built page would load from another machine: `python -m docs.generator.self_contained FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""Attributes whose address a browser loads by itself. Links that a reader may follow are none."""


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [address for address in (values.get(_LOADED.get(tag, "")), values.get("srcset")) if address]


def foreign(text: str, suffix: str) -> list[str]:
    """Return the addresses that a page or a style sheet loads and that are not beside it."""
    if suffix == ".css":
        parts = text.replace("@import", "url(").split("url(")[1:]
        found = [part.strip(" '\"").partition(")")[0] for part in parts]
    else:
        loads = _Loads()
        loads.feed(text)
        found = loads.found
    return [address for address in found if address.startswith(("http:", "https:", "//"))]


def check(folder: Path) -> Iterator[str]:
    """Yield a line for each address of another machine that a page of the site loads."""
    for path in sorted(folder.glob("**/*")):
        if path.suffix in (".html", ".css"):
            for address in foreign(path.read_text(encoding="utf-8"), path.suffix):
                yield f"{path.relative_to(folder)} loads {address}"


if __name__ == "__main__":
    problems = list(check(Path(sys.argv[1])))
    sys.exit("\n".join(problems) or None)
