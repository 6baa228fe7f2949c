"""Tell pickles that can run code from other files by their operations, without unpickling anything."""

from __future__ import annotations

import os
import pickletools
import re
from pathlib import Path
from typing import Final

PREFIX_BYTES: Final = 2**18
"""How much of a file is looked at."""

_UNREGISTERED: Final = frozenset({"EXT1", "EXT2", "EXT4"})
"""Stand for what a program has registered by number; an unpickler stops at a number that it has not."""
_OPERATIONS: Final = {
    operation.code.encode("latin-1")[0]: operation
    for operation in pickletools.opcodes
    if operation.name not in _UNREGISTERED
}
_IMPORTS: Final = frozenset({"GLOBAL", "INST", "STACK_GLOBAL"})
_CALLS: Final = frozenset({"INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_NAMED_IN_TWO_LINES: Final = frozenset({"GLOBAL", "INST"})
"""The argument is the module in one line and the name in another."""
_NUMBERS: Final = frozenset({"INT", "LONG", "FLOAT", "GET", "PUT"})
_NUMBER: Final = re.compile(rb"[\s0-9a-fxo+._linty-]*", re.IGNORECASE)
"""All letters that a number may have, in any base, inf and nan included."""
_LENGTH_BYTES: Final = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def may_unpickle_to_code(path: Path) -> bool:
    """Return whether unpickling a file may import something and call it.

    Old protocols have no first bytes of their own, and text is full of letters that are operations. So the operations
    are followed with the height of their stack: another file soon holds what an unpickler would stop at. A file that
    is in order up to `PREFIX_BYTES` and goes on behind them is taken for such a pickle.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(PREFIX_BYTES)
    whole = len(data) == size
    heights = [0]  # of the stack above each mark
    imported, position = False, 0
    while position < len(data):
        operation = _OPERATIONS.get(data[position])
        if operation is None or not _apply(operation, heights):
            return False
        argument, position = position + 1, _next(operation, data, position + 1, whole=whole)
        if position > len(data):  # cut off, or it goes on
            break
        if not _fits(operation, data[argument:position]):
            return False
        imported |= operation.name in _IMPORTS
        if imported and operation.name in (*_CALLS, "STOP"):
            return True
        if operation.name == "STOP":  # another pickle may follow
            heights = [0]
    return not whole and position <= size


def _apply(operation: pickletools.OpcodeInfo, heights: list[int]) -> bool:
    """Let an operation take from the stack and put on it; return whether it could."""
    needed = list(operation.stack_before)
    if pickletools.markobject in needed:
        below = needed.index(pickletools.markobject)
        above = len(needed) - below - 1 - (pickletools.stackslice in needed)
        if len(heights) == 1 or heights.pop() < above:
            return False
        needed = needed[:below]
    elif operation.name == "POP" and heights[-1] == 0 and len(heights) > 1:
        heights.pop()  # it takes a mark, too
        return True
    if heights[-1] < len(needed):
        return False
    heights[-1] -= len(needed)
    for added in operation.stack_after:
        if added is pickletools.markobject:
            heights.append(0)
        else:
            heights[-1] += 1
    return True


def _next(operation: pickletools.OpcodeInfo, data: bytes, argument: int, *, whole: bool) -> int:
    """Return where the operation behind an argument begins; beyond the data where the argument does not end in them."""
    end_of_data = len(data) if whole else len(data) + 1  # a last line ends with the file
    if operation.arg is None:
        return argument
    size = operation.arg.n
    if size == pickletools.UP_TO_NEWLINE:
        for _ in range(2 if operation.name in _NAMED_IN_TWO_LINES else 1):
            argument = data.find(b"\n", argument) + 1 or end_of_data
        return argument
    if size in _LENGTH_BYTES:
        start, argument = argument, argument + _LENGTH_BYTES[size]
        size = int.from_bytes(data[start:argument], "little")
    return argument + size


def _fits(operation: pickletools.OpcodeInfo, argument: bytes) -> bool:
    """Return whether an operation can do with its argument; a line of text seldom passes for a number or a name."""
    if operation.name in _NUMBERS:
        return _NUMBER.fullmatch(argument) is not None
    if operation.name == "STRING":
        return argument[:1] in (b"'", b'"')
    if operation.name in _NAMED_IN_TWO_LINES:
        # An unpickler cuts off the last byte, whether it ends the line or the file.
        lines = argument[:-1].decode("utf-8", errors="replace").split("\n")
        return all(part.isidentifier() for line in lines for part in line.split("."))
    return True
