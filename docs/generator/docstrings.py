"""Docstrings as the reference shows them: plain text with code between backticks, and examples that are indented."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise

_CODE = re.compile(r"(`+[^`]+`+)")
_LIST = re.compile(r"([-*]|\d+[.)]) ")


def attribute_docs(source: str) -> dict[str, str]:
    """Return what the text below each name says that a module or a class gives a value to: {name: text}."""
    tree = ast.parse(textwrap.dedent(source))
    blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    found = {}
    for block in blocks:
        for line, below in pairwise(block):
            names = (
                line.targets
                if isinstance(line, ast.Assign)
                else [line.target]
                if isinstance(line, ast.AnnAssign)
                else []
            )
            if (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found.update({name.id: below.value.value for name in names if isinstance(name, ast.Name)})
    return found


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring, a list's items and an indented example with those beside them."""
    first, _, rest = text.strip("\n").partition("\n")
    whole = first.strip() + "\n" + textwrap.dedent(rest)
    return [part.strip("\n") for part in re.split(r"\n\s*\n", whole.strip()) if part.strip()]


def as_markdown(text: str) -> str:
    """Return plain text as Markdown which shows it as it stands."""
    return "\n\n".join(_by_parts(" ".join(part.split()), r"([\\*_<\[\]|])") for part in paragraphs(text))


def as_restructured_text(lines: Sequence[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText which shows them as they stand.

    Code between backticks is code. An indented block is an example; items of a list stay items.
    """
    shown: list[str] = []
    for part in paragraphs("\n".join(lines)):
        inside = False
        for line in part.split("\n"):
            item = _LIST.match(line.lstrip())
            if line.startswith("    ") and not item and not (shown and shown[-1] and _LIST.match(shown[-1].lstrip())):
                if not inside:
                    shown += ["", "::", ""] if shown else ["::", ""]
                inside = True
                shown.append(line)
                continue
            if item and shown and shown[-1] and not _LIST.match(shown[-1].lstrip()) and not shown[-1].startswith(" "):
                shown.append("")
            inside = False
            shown.append(_by_parts(line, r"([\\*|_](?=\W|$)|(?<!\w)[*|])"))
        shown.append("")
    return shown


def _by_parts(text: str, special: str) -> str:
    """Put a backslash before special characters, except in code."""
    parts = _CODE.split(text)
    return "".join(part if number % 2 else re.sub(special, r"\\\1", part) for number, part in enumerate(parts))
