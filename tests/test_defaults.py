"""Every default and bound of the configuration and of public calls, and every named number, is in `defaults.txt`.

`python -m tests.test_defaults` prints the file's content anew, for a change that is meant.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic_core import PydanticUndefined

from scaling.core.config.base import BaseConfig
from tests.core.test_architecture import public_names, sources

TABLE = Path(__file__).with_name("defaults.txt")


def shown(value: object) -> str:
    """Return a default on one line, without what differs between machines and processes."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if inspect.isroutine(value) or isinstance(value, type):
        return str(value.__qualname__)
    if isinstance(value, BaseConfig) and value == type(value)():
        return f"{type(value).__name__}()"  # it has lines of its own
    return re.sub(r" object at 0x\w+| at 0x\w+", "", repr(value))


def of_configurations() -> Iterator[str]:
    """Yield a line for each field of each section, with the bounds it is held to."""
    for module in sorted(source.module for source in sources("src")):
        for name, section in vars(importlib.import_module(module)).items():
            if not (isinstance(section, type) and issubclass(section, BaseConfig) and section.__module__ == module):
                continue
            for key, field in section.model_fields.items():
                default = field.get_default(call_default_factory=True)
                value = "required" if default is PydanticUndefined else shown(default)
                # Of a mark with a reason the reason is no default.
                marks = [type(mark).__name__ if hasattr(mark, "why") else shown(mark) for mark in field.metadata]
                yield f"{name}.{key} = {value}" + "".join(f"  {mark}" for mark in marks)


def of_calls(name: str, call: Callable[..., Any]) -> Iterator[str]:
    """Yield a line for each parameter that has a default."""
    for parameter in inspect.signature(call).parameters.values():
        if parameter.default is not parameter.empty:
            yield f"{name}({parameter.name}={shown(parameter.default)})"


def of_public_names() -> Iterator[str]:
    """Yield the defaults of public functions, and of constructors and public methods of public classes."""
    seen = set()
    for path in sorted(public_names(), key=lambda path: (-path.count("."), path)):
        package, _, name = path.rpartition(".")
        public = getattr(importlib.import_module(package), name)
        if name in seen:  # `scaling.core` joins the names of its packages
            continue
        seen.add(name)
        if inspect.isfunction(public):
            yield from of_calls(path, public)
        if inspect.isclass(public) and public.__module__.startswith("scaling."):
            if "__init__" in vars(public) and not issubclass(public, BaseConfig):
                yield from of_calls(path, public.__init__)
            for method, value in vars(public).items():
                function = getattr(value, "__func__", value)
                if not method.startswith("_") and inspect.isfunction(function):
                    yield from of_calls(f"{path}.{method}", function)


def of_commands() -> Iterator[str]:
    """Yield the defaults of the arguments and options of commands."""
    for module in sorted(source.module for source in sources("src/scaling/cli")):
        for name, command in vars(importlib.import_module(module)).items():
            if inspect.isfunction(command) and command.__module__ == module and not name.startswith("_"):
                yield from of_calls(f"{module}.{name}", command)


def of_constants() -> Iterator[str]:
    """Yield a line for each number that a module gives a name: sizes, limits, intervals."""
    for source in sources("src"):
        for name, value in vars(importlib.import_module(source.module)).items():
            if re.search(rf"^{name}\b.* = ", source.text, re.MULTILINE) and type(value) in (int, float):
                yield f"{source.module}.{name} = {value!r}"


def table() -> str:
    """Return what is in the file when it is up to date."""
    return "\n".join([*of_configurations(), *of_public_names(), *of_commands(), *of_constants()]) + "\n"


def test_no_default_changes_unseen() -> None:
    now = table()
    changes = "\n".join(difflib.unified_diff(TABLE.read_text().splitlines(), now.splitlines(), lineterm="", n=0))
    assert not changes, f"python -m tests.test_defaults > tests/defaults.txt, if this is meant:\n{changes}"


if __name__ == "__main__":
    typer.echo(table(), nl=False)
