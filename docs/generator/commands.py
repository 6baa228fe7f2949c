"""The command reference: a page for each command of `scaling`, with all that its `--help` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docs.generator.docstrings import as_markdown
from scaling.cli.main import SUB_COMMANDS


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    for name, sub_command in SUB_COMMANDS.items():
        yield f"{name}.md", "".join(described(sub_command.load(name), f"scaling {name}", level=1))


def described(command: Any, name: str, *, level: int) -> Iterator[str]:
    """Yield the Markdown of a command of typer, and of those below it."""
    yield f"{'#' * level} {name}\n\n"
    yield as_markdown(command.help or "") + "\n\n"
    below = getattr(command, "commands", {})
    if not below:
        context = type(command).context_class(command, info_name=name)
        usage = " ".join(command.get_usage(context).removeprefix("Usage: ").replace("{", "").replace("}", "").split())
        usage = usage.replace("......", "...")  # of an argument whose own name ends with dots
        yield f"```text\n{usage}\n```\n\n```{{program}} {name}\n```\n\n"
        for parameter in command.params:
            yield from _parameter(parameter, context)
    for inner, each in below.items():
        yield from described(each, f"{name} {inner}", level=level + 1)


def _parameter(parameter: Any, context: Any) -> Iterator[str]:
    if record := parameter.get_help_record(context):
        name, text = record
        if not parameter.opts[0].startswith("-"):
            name = parameter.metavar or parameter.human_readable_name
        yield f"```{{option}} {name}\n\n{as_markdown(text)}\n```\n\n"
