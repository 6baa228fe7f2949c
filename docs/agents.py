"""Write AGENTS.md and llms.txt from what the repository says elsewhere: `python3 docs/agents.py`.

llms.txt (https://llmstxt.org) lists the pages in the order of the site's contents, each with its title and its first
sentence. AGENTS.md says how to work in the repository: its rules are those of CONTRIBUTING.md, its map is made of the
first lines of the packages. A test compares both with what is committed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
INDEX = REPOSITORY / "docs/index.md"
LONGEST = 200
"""Characters of a page's description, unless its first sentence is longer."""


def description() -> str:
    """Return what the project says of itself where it is packaged."""
    found = re.search(r'^description = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return f"{found[1]}."


def title_of(page: Path) -> str:
    """Return the heading of a page."""
    found = re.search(r"^# (.+)$", page.read_text(), re.MULTILINE)
    assert found is not None, f"{page} has no heading of its own"
    return plain(found[1])


def summary_of(page: Path) -> str:
    """Return the first sentences of a page's first paragraph."""
    body = page.read_text().partition("\n# ")[2] or page.read_text()
    paragraphs = [part for part in body.split("\n\n")[1:] if not part.startswith(("#", "```", "|", "<", "- "))]
    sentences = re.split(r"(?<=[.!?:]) (?=[A-Z`])", plain(paragraphs[0])) if paragraphs else [""]
    text = sentences[0]
    for sentence in sentences[1:]:
        if len(text) + len(sentence) >= LONGEST:
            break
        text += f" {sentence}"
    return text.rstrip(":") + "." * text.endswith(":")


def plain(text: str) -> str:
    """Return text on one line, without links and emphasis."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(text.split()))
    return re.sub(r"\*{1,2}([^*]+)\*{1,2}", r"\1", text)


def pages() -> dict[str, list[Path]]:
    """Return the pages below each caption of the site's contents, then those that no caption has."""
    found: dict[str, list[Path]] = {}
    contents = INDEX.read_text() if INDEX.exists() else ""
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", contents, re.MULTILINE | re.DOTALL):
        caption = re.search(r"^:caption: (.+)$", block, re.MULTILINE)
        names = [re.sub(r".*<(.+)>", r"\1", line) for line in block.splitlines() if line and not line.startswith(":")]
        for name in names:
            places = (REPOSITORY / "docs" / f"{name}.md", REPOSITORY / f"{name}.md")
            found.setdefault(caption[1] if caption else "Pages", []).extend(p for p in places[:2] if p.exists())
    known = {page for group in found.values() for page in group}
    others = [*sorted(REPOSITORY.glob("docs/**/*.md")), *sorted(REPOSITORY.glob("examples/*/*.md"))]
    left = [page for page in others if page not in known and page != INDEX]
    return found | ({"More" if found else "Pages": left} if left else {})


def llms() -> str:
    """Return llms.txt."""
    lines = ["# scaling", "", f"> {description()}", ""]
    lines += ["Every setting is explained by `scaling config template`, every command by `scaling --help`.", ""]
    for caption, group in pages().items():
        entries = [f"- [{title_of(page)}]({page.relative_to(REPOSITORY)}): {summary_of(page)}" for page in group]
        lines += [f"## {caption}", "", *entries, ""]
    return "\n".join(lines)


def section(page: Path, heading: str) -> str:
    """Return a section of a page without its heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1].strip()


def packages() -> Iterator[tuple[str, str]]:
    """Yield the folder and the purpose of each package."""
    for init in sorted((REPOSITORY / "src/scaling").glob("**/__init__.py")):
        purpose = ast.get_docstring(ast.parse(init.read_text()))
        if purpose:
            yield str(init.parent.relative_to(REPOSITORY)), purpose.splitlines()[0]


def agents() -> str:
    """Return AGENTS.md."""
    contributing, architecture = REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "docs/architecture.md"
    lines = ["# How to work in this repository", "", description(), ""]
    lines += [
        "Written by `python3 docs/agents.py` from CONTRIBUTING.md, docs/architecture.md and the packages: change those."
    ]
    lines += ["", "## Commands", "", section(contributing, "Set up"), ""]
    lines += ["## Map", "", "| folder | |", "|---|---|"]
    lines += [f"| `{folder}` | {purpose} |" for folder, purpose in packages()]
    lines += ["", "Pages of documentation are listed in [llms.txt](llms.txt).", ""]
    lines += ["## Decisions", "", section(architecture, "Five decisions"), ""]
    for heading in ("Rules that a test enforces", "Rules for review", "Tests", "Commits"):
        lines += [f"## {heading}", "", section(contributing, heading), ""]
    return "\n".join(lines)


def files() -> dict[Path, str]:
    """Return what each file has to hold."""
    return {REPOSITORY / "AGENTS.md": agents(), REPOSITORY / "llms.txt": llms()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
