"""The reference of Python names: a page for each package of `scaling.core` and `scaling.transformer`."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType

from docs.generator.docstrings import as_restructured_text, attribute_docs

PACKAGES = ("scaling.core", "scaling.transformer")


def homes(package: str) -> dict[str, str]:
    """Return where each public name of a package is defined: {name: module}, in the order of `__all__`."""
    found = {}
    for name, module in _imports(package):
        if name == "*":
            found.update(homes(module))
        else:
            found[name] = module
    return found


def groups(package: str) -> dict[str, list[str]]:
    """Return the public names of a package by the package or the module that they are taken from."""
    found: dict[str, list[str]] = {}
    for name, module in _imports(package):
        below = module.removeprefix(f"{package}.").partition(".")[0]
        found.setdefault(f"{package}.{below}", []).extend(homes(module) if name == "*" else [name])
    return found


def _imports(package: str) -> Iterator[tuple[str, str]]:
    for block in ast.parse(_text(importlib.import_module(package))).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    yield from ((alias.name, line.module) for alias in line.names)


def public_names() -> dict[str, str]:
    """Return the name by which users import each public thing, by that of its definition."""
    return {f"{home}.{name}": f"{package}.{name}" for package in PACKAGES for name, home in homes(package).items()}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page, in reStructuredText."""
    for package in PACKAGES:
        where = homes(package)
        for group, names in groups(package).items():
            title = group.removeprefix("scaling.")
            about = (inspect.getdoc(importlib.import_module(group)) or "").split("\n\n")[0]
            lines = [title, "=" * len(title), "", *as_restructured_text(about.split("\n"))]
            lines += [f"Import from ``{package}``.", ""]
            lines += [*summary(package, names, where), ""]
            for name in names:
                lines += [*described(package, name, where[name]), ""]
            yield f"{title}.rst", "\n".join(lines)


def summary(package: str, names: list[str], where: Mapping[str, str]) -> list[str]:
    """Return a list of names, each with the first sentence of what is said of it."""
    lines = []
    for name in names:
        thing = getattr(importlib.import_module(package), name)
        said = (inspect.getdoc(thing) if is_described_by_itself(thing) else _docs_of(where[name]).get(name)) or ""
        first = as_restructured_text([" ".join(said.split("\n\n")[0].split())])
        lines.append(": ".join([f"- :py:obj:`~{package}.{name}`", *first[:1]]))
    return lines


def is_described_by_itself(thing: object) -> bool:
    """Return whether something public is a class or a function, which has a docstring of its own."""
    return isinstance(thing, type) or inspect.isroutine(thing)


def described(package: str, name: str, home: str) -> list[str]:
    """Return the directive that describes a public name."""
    thing = getattr(importlib.import_module(package), name)
    if isinstance(thing, type):
        directive = "autoexception" if issubclass(thing, BaseException) else "autoclass"
        choices = ["   :undoc-members:"] if issubclass(thing, Enum) else []
        return [f".. {directive}:: {package}.{name}", "   :members:", *choices]
    if inspect.isroutine(thing):
        return [f".. autofunction:: {package}.{name}"]
    text = _docs_of(home).get(name, "")
    return [
        f".. py:currentmodule:: {package}",
        "",
        f".. py:data:: {name}",
        "",
        *(f"   {line}" for line in as_restructured_text(text.split("\n"))),
    ]


@cache
def _docs_of(module: str) -> dict[str, str]:
    return attribute_docs(_text(importlib.import_module(module)))


def _text(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")
