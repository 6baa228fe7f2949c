"""Distinguish pickles that can run code from other files by their operations, without unpickling anything."""

from __future__ import annotations

import io
import pickletools
import warnings
from pathlib import Path
from typing import Final

PREFIX_BYTES: Final = 2**20
"""How many bytes of a file are examined."""

_NAMING_IMPORTS: Final = frozenset({"GLOBAL", "INST"})
"""Operations whose argument is the module and the name, with a space between them."""
_IMPORTS: Final = _NAMING_IMPORTS | {"STACK_GLOBAL"}
_ENDS: Final = frozenset({"INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "STOP"})
"""Operations that call the imported object, or return it."""


def may_unpickle_to_code(path: Path) -> bool:
    """Return whether unpickling a file may import something and call it.

    Old protocols have no magic bytes, and text is full of letters that are operations. But text soon contains a letter
    that is none, an argument that does not fit its operation, or an operation for which the stack holds too little.
    """
    with path.open("rb") as file:
        data = file.read(PREFIX_BYTES)
    stream = io.BytesIO(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about backslashes in files that are not pickles
        try:
            while stream.tell() < len(data):  # another pickle may follow one that has ended
                if _imports_and_ends(stream):
                    return True
        except ValueError:  # not a pickle, or cut off
            return False
    return False


def _imports_and_ends(stream: io.BytesIO) -> bool:
    heights = [0]  # of the stack, above each mark
    imported = False
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in _NAMING_IMPORTS and not _is_import(str(argument)):
            raise ValueError(f"{argument!r} cannot be imported")
        _apply(operation, heights)
        imported |= operation.name in _IMPORTS
        if imported and operation.name in _ENDS:
            return True
    return False


def _is_import(argument: str) -> bool:
    names = argument.split(" ")
    return len(names) == 2 and all(part.isidentifier() for name in names for part in name.split("."))


def _apply(operation: pickletools.OpcodeInfo, heights: list[int]) -> None:
    """Apply an operation to the heights of the stack; `ValueError` where the stack holds too little."""
    needed = list(operation.stack_before)
    if pickletools.markobject in needed:  # takes everything above the mark, then items below it
        if len(heights) == 1:
            raise ValueError("no mark")
        heights.pop()
        needed = needed[: needed.index(pickletools.markobject)]
    elif operation.name == "POP" and heights[-1] == 0 and len(heights) > 1:  # it may take a mark, too
        heights.pop()
        return
    heights[-1] -= len(needed)
    if heights[-1] < 0:
        raise ValueError("the stack is empty")
    for added in operation.stack_after:
        if added is pickletools.markobject:
            heights.append(0)
        else:
            heights[-1] += 1
