"""Docstrings as the reference shows them: plain text with code between backticks, and examples that are indented."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from itertools import groupby, pairwise

_CODE = re.compile(r"(`+[^`]+`+)")
_ITEM = re.compile(r" *([-*]|\d+[.)]) ")
_ENTRY = re.compile(r"^ {4}(\w+):")


def attribute_docs(source: str) -> dict[str, str]:
    """Return what the text below each name says that a module or a class gives a value to: {name: text}."""
    tree = ast.parse(textwrap.dedent(source))
    blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    found = {}
    for block in blocks:
        for pair in pairwise(block):
            match pair:
                case (
                    ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring that has been cleaned of its indentation."""
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def as_markdown(text: str) -> str:
    """Return plain text as Markdown which shows it as it stands."""
    return "\n\n".join(_by_parts(" ".join(part.split()), r"([\\*_<\[\]|])") for part in paragraphs(text))


def as_restructured_text(lines: Sequence[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText which shows them as they stand.

    Code between backticks is code. An indented block is an example, unless each of its lines says something of a name,
    as those below `Raises:` do. Items of a list stay items.
    """
    shown: list[str] = []
    for part in paragraphs("\n".join(lines)):
        inner = part.split("\n")
        if any(_ITEM.match(line) for line in inner):
            first = next(number for number, line in enumerate(inner) if _ITEM.match(line))
            shown += [*map(_escaped, inner[:first]), ""] if first else []
            shown += map(_escaped, inner[first:])
        else:
            for indented, run in groupby(inner, lambda line: line.startswith("    ")):
                block = list(run)
                shown += _block(block) if indented else map(_escaped, block)
        shown.append("")
    return shown


def _block(lines: list[str]) -> list[str]:
    """Return an indented block: a list of names and what is said of them, or an example."""
    if all(_ENTRY.match(line) or line.startswith(" " * 8) for line in lines):
        return ["", *(_escaped(_ENTRY.sub(r"- `\1`:", line.replace(" " * 8, "  ", 1))) for line in lines), ""]
    return ["", "::", "", *lines, ""]


def _escaped(line: str) -> str:
    return _by_parts(line, r"([\\*|_](?=\W|$)|(?<!\w)[*|])")


def _by_parts(text: str, special: str) -> str:
    """Put a backslash before special characters, except in code."""
    parts = _CODE.split(text)
    return "".join(part if number % 2 else re.sub(special, r"\\\1", part) for number, part in enumerate(parts))
