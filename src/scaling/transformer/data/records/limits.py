"""Limits on the cost of a template: the size of the values that it makes, and the time that it computes.

A template is untrusted data. Every value that it makes is weighed: lists within lists, each holding the next one twice,
are small in memory and endless as text. Operations that multiply sizes are checked before they run, and every loop and
every call checks the clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, final

from jinja2.exceptions import TemplateError

MOST_CHARACTERS: Final = 2**24
"""Far more than the longest conversations have."""
MOST_MADE: Final = 2**32
"""Total of one rendering, so that values kept under many names are bounded too."""
MOST_SECONDS: Final = 10.0
"""CPU time of a rendering, however busy the machine is; templates take milliseconds."""
_PER_ELEMENT: Final = 64
_BITS: Final = 10_000
"""Most bits of a whole number that a multiplication makes."""
_ROUNDS_BETWEEN_LOOKS: Final = 256
_STEPS_BETWEEN_LOOKS: Final = 16
"""Each step makes little beyond what it is given; checking the clock takes as long as a small step."""
_NUMBERS: Final = re.compile(r"\d+")
_WIDTH_OF_FIELD: Final = re.compile(r"\{[^{}]*\{")


class Overrun(TemplateError):
    """A template makes too much, or takes too long."""


@final
class Work:
    """The cost of a rendering so far."""

    def __init__(self) -> None:
        self._ends = time.thread_time() + MOST_SECONDS
        self._made = 0
        self._steps = 0

    def add(self, size: int = 0) -> None:
        """Count a step and the size of what it made, and check the clock now and then.

        Raises:
            Overrun: A limit is exceeded.
        """
        self._made += size
        if self._made > MOST_MADE:
            raise Overrun(f"it makes more than {MOST_MADE} characters on its way")
        self._steps += 1
        if self._steps % _STEPS_BETWEEN_LOOKS == 0 and time.thread_time() > self._ends:
            raise Overrun(f"it computes for more than {MOST_SECONDS:g} seconds, or without end")


_WORK: Final[ContextVar[Work | None]] = ContextVar("work", default=None)


@contextmanager
def working() -> Iterator[None]:
    """Count what a rendering costs from here on."""
    token = _WORK.set(Work())
    try:
        yield
    finally:
        _WORK.reset(token)


def step(size: int = 0) -> None:
    """Count a step of the current rendering."""
    work = _WORK.get()
    if work is not None:
        work.add(size)


def steps(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values of a loop, checking the clock, which nothing else in the loop may do."""
    for number, value in enumerate(values):
        if number % _ROUNDS_BETWEEN_LOOKS == 0:
            step()
        yield value


def sized(value: Any) -> Any:
    """Return a value that a template has made, if it is not too large."""
    if type(value) is str:  # nearly always
        size = len(value)
        require(size)
    else:
        size = 0 if value is None or type(value) is bool else weight(value)
    step(size)
    return value


def weight(value: Any) -> int:
    """Return about how many characters a value has as text.

    Raises:
        Overrun: There are too many.
    """
    total, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        match one:
            case str() | bytes():
                total += len(one)
            case dict():
                total += _PER_ELEMENT * len(one)
                waiting += [*one.keys(), *one.values()] if total <= MOST_CHARACTERS else []
            case list() | tuple() | set() | frozenset():
                total += _PER_ELEMENT * len(one)
                waiting += one if total <= MOST_CHARACTERS else []
            case int():
                total += one.bit_length() // 3
        require(total)
    return total


def require(size: int) -> None:
    """Refuse the size of a value, before it is made.

    Raises:
        Overrun: It is too large.
    """
    if size > MOST_CHARACTERS:
        raise Overrun(f"it makes a text or a list of more than {MOST_CHARACTERS} characters")


def require_product(left: Any, right: Any) -> None:
    """Refuse `left * right` if its value would be too large."""
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int) or isinstance(right, int):
        number, value = (left, right) if isinstance(left, int) else (right, left)
        require(weight(value) * max(number, 0))


def require_power(left: Any, right: Any) -> None:
    """Refuse `left ** right` if its value would be too large."""
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() * abs(right))


def _require_bits(bits: int) -> None:
    if bits > _BITS:
        raise Overrun(f"it computes a number of more than {_BITS} bits")


def require_percent_format(text: Any, *values: Any, **fields: Any) -> None:
    """Refuse `text % values` if its value would be too large."""
    _require_format(str(text), "%", values, fields, inner="*" in str(text))


def require_brace_format(text: str, *values: Any, **fields: Any) -> None:
    """Refuse `text.format(...)` if its value would be too large."""
    _require_format(text, "{", values, fields, inner=_WIDTH_OF_FIELD.search(text) is not None)


def _require_format(text: str, mark: str, values: tuple[Any, ...], fields: Mapping[str, Any], *, inner: bool) -> None:
    """`inner`: widths may be among the values."""
    widest = max((int(number[:20]) for number in _NUMBERS.findall(text)), default=0)
    if inner:
        widest += _largest(*values, *fields.values())
        for value in values:  # of format_map and of the operator
            widest += _largest(
                *(value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ())
            )
    require(len(text) + text.count(mark) * (widest + weight(values) + weight(dict(fields))))


def _largest(*values: Any) -> int:
    return max(
        (abs(one) if isinstance(one, int) else len(one) for one in values if isinstance(one, (int, str))), default=0
    )


def _padded(value: Any, *values: Any, **fields: Any) -> None:
    require(_largest(*values, *fields.values()))


def _in_each_place(value: Any, *values: Any, **fields: Any) -> None:
    require((1 + weight(value)) * _largest(*values, *fields.values()))


def _replaced(text: Any, old: Any = "", new: Any = "", *_: Any, **fields: Any) -> None:
    old, new = str(fields.get("old", old)), str(fields.get("new", new))
    require(str(text).count(old) * len(new))


def _translated(text: Any, table: Any = None) -> None:
    require(len(text) * (1 + weight(table)))


def _summed(values: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise Overrun("it sums up what are no numbers")


def _without(*_: Any, **__: Any) -> None:
    raise Overrun("it makes bytes of a number")


BEFORE_FILTER: Final[Mapping[str, Callable[..., None]]] = {
    **dict.fromkeys(("batch", "center", "round", "slice", "truncate"), _padded),
    **dict.fromkeys(("indent", "tojson", "urlize", "wordwrap", "xmlattr"), _in_each_place),
    "format": require_percent_format,
    "replace": _replaced,
    "sum": _summed,
}
"""Checks before a filter, called with its arguments."""

BEFORE_METHOD: Final[Mapping[str, Callable[..., None]]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "expandtabs": _in_each_place,
    "replace": _replaced,
    "translate": _translated,
    "to_bytes": _without,
}
"""Checks before a method of a text or a number, called with that and the arguments."""


def listed(separator: Any, values: Any) -> list[Any]:
    """Return a list of the values to join, if they are not too large together."""
    found = list(steps(values))
    require(weight(found) + len(found) * weight(separator))
    return found
