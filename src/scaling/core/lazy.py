"""Public names of a package, loaded when first used, so that programs that need no torch start without it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any


def load_on_use(package: str) -> None:
    """Make the names that `package` imports under `if TYPE_CHECKING` its `__all__`, and load each on first use.

    Each name is thus written once, where type checkers and editors read it: `from home import Name as Name`. A star
    import takes all names of another such package. No name may equal that of a module of the package: Python sets an
    imported module as an attribute of its package.
    """
    module = sys.modules[package]

    @cache
    def homes() -> dict[str, str]:
        return dict(_homes(ast.parse(pkgutil.get_data(package, "__init__.py") or b"")))

    def load(name: str) -> Any:
        if name == "__all__":
            value: Any = list(homes())
        elif name in homes():
            value = getattr(importlib.import_module(homes()[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(module, name, value)
        return value

    vars(module).update(__getattr__=load, __dir__=lambda: sorted({*vars(module), *homes()}))


def _homes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each name and the module that defines it."""
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module is not None:
                    for alias in line.names:
                        names = importlib.import_module(line.module).__all__ if alias.name == "*" else [alias.name]
                        yield from ((name, line.module) for name in names)
