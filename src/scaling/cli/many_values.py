"""Options that accept every value up to the next option: `--against A=1 B=2` is `--against A=1 --against B=2`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand


def taking_many(*options: str) -> type[TyperCommand]:
    """Return a command class whose `options` may be followed by several values."""

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer may or may not bring its own click
            return super().parse_args(ctx, list(spread(args, options)))

    return Command


def spread(arguments: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """Repeat each of `options` before every value that follows it."""
    current: str | None = None
    fresh = False
    for argument in arguments:
        if argument.startswith("-"):
            current, fresh = (argument, True) if argument in options else (None, False)
        elif current is not None and not fresh:
            yield current
        else:
            fresh = False
        yield argument
