"""Put a bug into a function: replace a piece of its source, wherever it is used, for as long as a test needs."""

from __future__ import annotations
import __future__

import contextlib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

Edit = tuple[str, str]


@contextlib.contextmanager
def mutated(target: str, edits: Sequence[Edit]) -> Iterator[None]:
    """Replace `module:function` or `module:Class.method` by itself with edits (what is there, what comes instead).

    A piece that is not there exactly once is an error: the code has changed, and the mutation has to follow.
    """
    module_name, _, path = target.partition(":")
    module = importlib.import_module(module_name)
    *owners, name = path.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    original = inspect.getattr_static(owner, name)
    changed = _edited(original, owner, edits, target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(owner, name, changed))
        if owner is module:  # others have imported the function by its name
            for other in list(sys.modules.values()):
                if isinstance(other, ModuleType) and other is not module and vars(other).get(name) is original:
                    stack.enter_context(mock.patch.object(other, name, changed))
        yield


def _edited(original: Any, owner: Any, edits: Sequence[Edit], target: str) -> Any:
    function: Any = original.fget if isinstance(original, property) else inspect.unwrap(original)
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in edits:
        if source.count(old) != 1:
            raise LookupError(f"{target} has {old!r} {source.count(old)} times; a mutation needs it exactly once")
        source = source.replace(old, new)
    # Compiled inside a function with a variable of this name, so that `super()` finds its class.
    body = f"def make(__class__):\n{textwrap.indent(source, '    ')}\n    return {function.__name__}"
    code = compile(body, f"<mutation of {target}>", "exec", flags=__future__.annotations.compiler_flag)
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    return made["make"](owner)
