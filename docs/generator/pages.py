"""Where each file of the repository lies on the site, and links between files rewritten to links between pages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).parents[2]

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
"""Files that are pages."""
PICTURES = {".svg", ".png"}
LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml"}
"""How files that pages link to are highlighted."""

_CODE_OR_LINK = re.compile(
    r"(?P<code>^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`))"
    r"|(?<=\]\()(?P<target>[^)\s]+)",
    re.MULTILINE | re.DOTALL,
)


def pages_of(repository: Path) -> list[PurePosixPath]:
    """Return the files of a repository that are pages, by their paths in it."""
    found = {path for pattern in PAGES for path in repository.glob(pattern)}
    return sorted(PurePosixPath(path.relative_to(repository)) for path in found)


def place(path: PurePosixPath) -> PurePosixPath:
    """Return where a file of the repository lies on the site: docs/ is its top, all else keeps its path."""
    return path.relative_to("docs") if path.parts[0] == "docs" else path


def source_page(path: PurePosixPath) -> PurePosixPath:
    """Return where the page lies that shows a file or a folder as it is."""
    return PurePosixPath("source", f"{path}.md")


def links(text: str) -> Iterator[str]:
    """Yield the targets of a page's links and pictures, those in code left out."""
    yield from (found["target"] for found in _CODE_OR_LINK.finditer(text) if found["target"])


class Site:
    """The pages of a repository, and what they link to."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.pages = set(pages_of(repository))

    def meant(self, page: PurePosixPath, target: str) -> PurePosixPath | None:
        """Return the file or folder of the repository that a link on a page leads to; None where there is none."""
        path = target.partition("#")[0]
        if not path or "://" in target or target.startswith("mailto:"):
            return None
        meant = PurePosixPath(os.path.normpath(page.parent / path))
        if meant.parts[:1] == ("..",) or not (self.repository / meant).exists():
            return None
        readme = meant / "README.md"
        return readme if readme in self.pages else meant

    def rewritten(self, page: PurePosixPath, text: str) -> str:
        """Return the text of a page with its links as they are on the site. A broken link stays, to be refused."""

        def replaced(found: re.Match[str]) -> str:
            target = found["target"]
            meant = self.meant(page, target) if target else None
            if target is None or meant is None:
                return found[0]
            anchor = "#" + target.partition("#")[2] if "#" in target and meant in self.pages else ""
            as_it_is = meant in self.pages or meant.suffix in PICTURES
            there = place(meant) if as_it_is else source_page(meant)
            return os.path.relpath(there, place(page).parent) + anchor

        return _CODE_OR_LINK.sub(replaced, text)

    def linked(self, texts: Mapping[PurePosixPath, str]) -> set[PurePosixPath]:
        """Return the files and folders that pages link to and that are no pages; with a folder, what is in it."""
        found = {self.meant(page, target) for page, text in texts.items() for target in links(text)}
        named = {path for path in found if path is not None and path not in self.pages}
        return named | {inside for path in named for inside in self.inside(path)}

    def inside(self, folder: PurePosixPath) -> Iterable[PurePosixPath]:
        """Return the files in a folder, one level deep; nothing where it is a file."""
        here = self.repository / folder
        names = sorted(path.name for path in here.iterdir() if path.is_file()) if here.is_dir() else []
        return [folder / name for name in names if is_text(here / name)]


def is_text(path: Path) -> bool:
    """Return whether a file is text."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def shown_file(path: PurePosixPath, text: str) -> str:
    """Return the page that shows a file."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{_head(path)}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def shown_folder(folder: PurePosixPath, files: Iterable[PurePosixPath]) -> str:
    """Return the page that shows what is in a folder."""
    return _head(folder) + "".join(f"- [`{path.name}`]({folder.name}/{path.name}.md)\n" for path in files)


def _head(path: PurePosixPath) -> str:
    return f"---\norphan: true\nnosearch: true\n---\n# `{path}`\n\n"
