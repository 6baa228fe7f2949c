"""The Jinja of chat templates: sandboxed, with the functions and tags that published templates expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from typing import Any, Final, NoReturn, final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from scaling.transformer.data.records.limits import (
    BEFORE_FILTER,
    BEFORE_METHOD,
    listed,
    require,
    require_brace_format,
    require_percent_format,
    require_power,
    require_product,
    sized,
    step,
    steps,
    working,
)

MOST_IN_SOURCE: Final = 2**20
"""Most characters of a template."""
_STEPS: Final = "_steps"
_SIZED: Final = "_sized"


@dataclass
class Marks:
    """The text that a template has written so far, and which characters of it are between generation tags."""

    written: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


_MARKS: Final[ContextVar[Marks | None]] = ContextVar("marks", default=None)


class GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        """Turn the tag into a call of `_mark` with its content."""
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
    """`namespace`, without names that lead out of a sandbox, and shown without its contents, which may be endless."""

    def __repr__(self) -> str:
        return "<Namespace>"

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
    """Return JSON without escapes for HTML, unlike Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Limiter(NodeTransformer):
    """Transformer that makes loops count their steps and weighs values that are composed of parts."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through(_STEPS, node.iter, node)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _through(_SIZED, node.filter, node)
        return node

    def _weighed(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        try:
            node.as_const()
        except nodes.Impossible:
            return node if getattr(node, "ctx", "load") != "load" else _through(_SIZED, node, node)
        return node

    visit_List = visit_Tuple = visit_Dict = visit_Concat = _weighed


def _through(name: str, value: Any, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=node.lineno)


@final
class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with limits on what a template computes."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, LoopControlExtension])
        self.filters["tojson"] = _to_json
        self.filters = {name: _limited(name, function) for name, function in self.filters.items()}
        # Filters that take the context are never computed while a template is compiled.
        self.filters[_STEPS] = pass_context(lambda _, values: steps(values))
        self.filters[_SIZED] = pass_context(lambda _, value: sized(value))
        del self.globals["lipsum"]  # writes as much as a template asks for
        self.globals.update(raise_exception=_raise_exception, strftime_now=_now, dict=_Dict(), namespace=_Namespace)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        found = list(parts)
        size = sum(map(len, found))
        require(size)
        step(size)
        return "".join(found)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Limiter().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        match operator:
            case "*":
                require_product(left, right)
            case "**":
                require_power(left, right)
            case "%" if isinstance(left, (str, bytes)):
                require_percent_format(left, right)
        return sized(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None
        write = made

        @wraps(write)
        def limited(*args: Any, **fields: Any) -> str:
            require_brace_format(value.__self__, *args, **fields)
            return write(*args, **fields)

        return limited

    def call(self, context: Context, function: Any, /, *args: Any, **fields: Any) -> Any:
        """Check methods that multiply sizes, then call. Parameters are positional, since templates may use any name."""
        owner = getattr(function, "__self__", None)
        if isinstance(function, LoopContext) and args:
            args = (steps(args[0]), *args[1:])
        elif isinstance(owner, (str, bytes, int)):
            name = getattr(function, "__name__", "")
            if name == "join" and len(args) == 1:
                args = (listed(owner, args[0]),)
            elif name in BEFORE_METHOD:
                BEFORE_METHOD[name](owner, *args, **fields)
        return sized(super().call(context, function, *args, **fields))


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is checked before it runs, and whose result is weighed."""
    before = BEFORE_FILTER.get(name)
    first = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

    @wraps(function)
    def limited(*args: Any, **fields: Any) -> Any:
        if before is not None:
            before(*args[first:], **fields)
        elif name == "join":
            given, values, *others = args
            args = (given, listed(others[0] if others else fields.get("d", ""), values), *others)
        return sized(function(*args, **fields))

    return limited


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        TemplateError: The source is not one.
    """
    if len(source) > MOST_IN_SOURCE:
        raise TemplateError(f"it has {len(source)} characters; at most {MOST_IN_SOURCE} are taken")
    try:
        return _Environment().from_string(source)
    except TemplateError:
        raise
    except Exception as error:  # Python itself limits how deep blocks and expressions go
        raise TemplateError(f"{type(error).__name__}: {error}") from error


def render(template: jinja2.Template, variables: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text that a template makes of variables, and the spans of characters between generation tags.

    Raises:
        Overrun: The template makes too much, or takes too long.
    """
    marks = Marks()
    token = _MARKS.set(marks)
    try:
        with working():
            size = 0
            for part in template.generate(variables):
                marks.written.append(part)
                size += len(part)
                require(size)
    finally:
        _MARKS.reset(token)
    return "".join(marks.written), marks.spans
