"""Write a configuration's defaults as YAML in which every key is explained."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from scaling.core.config.base import BaseConfig
from scaling.core.config.fields import Derived, NoEffect, SetByLauncher, Unavailable, marker
from scaling.core.config.yaml_text import dump_yaml

WIDTH = 100


def template(config: BaseConfig) -> str:
    """Return `config` as YAML with a comment above each key. The YAML loads as the same configuration.

    Keys that have no effect, are set by the launcher or name features this version does not have are left out.
    """
    return "\n".join([*_comment(type(config).__doc__ or "", indent=""), *_section(config, indent="")]) + "\n"


def _section(config: BaseConfig, *, indent: str) -> Iterator[str]:
    for name, field in type(config).model_fields.items():
        if any(marker(field, kind) for kind in (NoEffect, SetByLauncher, Unavailable)):
            continue
        derived, value = marker(field, Derived), getattr(config, name)
        if derived and derived.null_in_template and value == getattr(type(config)(), name):
            value = None
        if entry := list(_entry(name, value, config, indent=indent)):
            yield from [""] if indent == "" else []
            yield from _comment(field.description or "", indent=indent)
            yield from entry


def _entry(name: str, value: Any, config: BaseConfig, *, indent: str) -> Iterator[str]:
    """Yield the lines of one key: a nested section, a list of sections, or plain data."""
    match value:
        case BaseConfig():
            if lines := list(_section(value, indent=indent + "  ")):
                yield f"{indent}{name}:"
                yield from lines
        case [BaseConfig(), *_]:
            yield f"{indent}{name}:"
            for item in value:
                yield f"{indent}  -"
                yield from _section(item, indent=indent + "    ")
        case None:
            yield f"{indent}{name}: null"
        case _:
            yield textwrap.indent(dump_yaml({name: config.as_dict()[name]}).rstrip("\n"), indent)


def _comment(text: str, *, indent: str) -> list[str]:
    """Return `text` as comment lines. Blank lines separate paragraphs, as in a docstring."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in textwrap.dedent(text).split("\n\n")]
    lines: list[str] = []
    for paragraph in filter(None, paragraphs):
        lines += textwrap.wrap(
            paragraph, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False
        )
    return lines
