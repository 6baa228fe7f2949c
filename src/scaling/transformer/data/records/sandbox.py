"""The Jinja of chat templates: sandboxed, with the functions and tags that published templates expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


@dataclass
class Marks:
    """What a template has written so far, and which characters of it between generation tags."""

    written: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


_MARKS: Final[ContextVar[Marks | None]] = ContextVar("marks", default=None)


class GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        """Make the tag a call of `_mark` with what is between."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        marks = _MARKS.get()
        if marks is not None:
            start = sum(map(len, marks.written))
            marks.spans.append((start, start + len(text)))
        return text


class _Dict:
    """`dict`, without the attributes that lead out of a sandbox."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, without names that lead out of a sandbox."""

    def __init__(*args: Any, **fields: Any) -> None:  # a field may be called self
        self, *given = args
        found = dict(*given, **fields)
        for name in found:
            _require_plain(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have a field {name!r}: it begins with an underscore")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Unlike Jinja's own filter: without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        TemplateError: It is not one.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_now, dict=_Dict(), namespace=_Namespace)
    return environment.from_string(source)


def render(template: jinja2.Template, variables: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """Return what a template makes of variables, and the spans of characters between generation tags."""
    marks = Marks()
    token = _MARKS.set(marks)
    try:
        for part in template.generate(variables):
            marks.written.append(part)
    finally:
        _MARKS.reset(token)
    return "".join(marks.written), marks.spans
