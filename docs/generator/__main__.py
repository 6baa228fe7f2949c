"""Write the pages of the site into a folder, from which Sphinx builds it: `python -m docs.generator FOLDER`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from docs.generator import api, commands, settings
from docs.generator.pages import PICTURES, REPOSITORY, Site, is_text, place, shown_file, shown_folder, source_page


def texts(repository: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield each page of the site that is made of a repository's files: where it lies, and its text."""
    site = Site(repository)
    written = {page: (repository / page).read_text(encoding="utf-8") for page in sorted(site.pages)}
    for page, text in written.items():
        yield place(page), site.rewritten(page, text)
    for path in sorted(site.linked(written)):
        if (repository / path).is_dir():
            yield source_page(path), shown_folder(path, site.inside(path))
        elif path.suffix not in PICTURES and is_text(repository / path):
            yield source_page(path), shown_file(path, (repository / path).read_text(encoding="utf-8"))


def generated() -> Iterator[tuple[PurePosixPath, str]]:
    """Yield each page that is made of the code: where it lies, and its text."""
    for folder, pages in (("configuration", settings.pages()), ("commands", commands.pages()), ("api", api.pages())):
        yield from ((PurePosixPath("reference", folder, name), text) for name, text in pages)


def write(folder: Path, repository: Path = REPOSITORY) -> None:
    """Write all pages and pictures into a folder, and remove what was left there of others.

    A file that is as it should be is left alone: Sphinx reads again what has changed.
    """
    kept = set()
    for path, text in (*texts(repository), *generated()):
        file = folder / path
        kept.add(file)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for picture in (path for top in ("docs", "examples") for path in repository.glob(f"{top}/**/*")):
        if picture.suffix in PICTURES:
            file = folder / place(PurePosixPath(picture.relative_to(repository)))
            kept.add(file)
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, file)
    for file in folder.glob("**/*"):
        if file.is_file() and file not in kept:
            file.unlink()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
