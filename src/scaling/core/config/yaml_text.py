"""Read YAML 1.2 (and JSON with comments) into plain data, refusing surprising constructs; write it back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, TypeVar

import yaml

from scaling.core.errors import ConfigError, Problem

MAX_CHARACTERS: Final = 4 * 2**20
MAX_BYTES: Final = 4 * MAX_CHARACTERS + 3
"""The most bytes of so many characters in UTF-8, with a byte order mark. Weights passed by mistake are not read."""
MAX_VALUES: Final = 200_000
"""Limit on values after aliases are expanded, so that a few lines of aliases cannot fill the memory."""

_TAG: Final = "tag:yaml.org,2002:"
_CORE_TYPES: Final = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
"""Tag, pattern and first characters of the plain scalars of YAML 1.2 that are not text, and of merge keys."""

Reader = TypeVar("Reader", bound=type[yaml.resolver.BaseResolver])


def _with_core_types(reader: Reader) -> Reader:
    for tag, pattern, first in _CORE_TYPES:
        reader.add_implicit_resolver(_TAG + tag, re.compile(f"^(?:{pattern})$"), list(first))
    return reader


@_with_core_types
class _Loader(yaml.SafeLoader):
    """A loader with the scalar types of YAML 1.2: `1e-4` is a number, `no` and `12:30` are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # the stub puts it on instances


@_with_core_types
class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text that YAML 1.1 or 1.2 reads as something else, and writes plain lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        items = list(data)
        plain = not any(isinstance(item, (dict, list)) for item in items)
        return self.represent_sequence(_TAG + "seq", items, flow_style=plain)

    def represent_float(self, data: float) -> yaml.ScalarNode:
        return self.represent_scalar(_TAG + "float", repr(data))


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(float, _Dumper.represent_float)


def parse_yaml(text: str, *, source: str | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """Return the mapping in `text`, and the problems that do not prevent reading the rest (repeated keys).

    Text that is not YAML, holds something other than a mapping or is unreasonably large raises `ConfigError`.
    """
    value, problems = _parse(text, source)
    if value is None:
        return {}, problems
    if not isinstance(value, dict):
        raise ConfigError("the configuration must be KEY: VALUE lines", source=source)
    return value, problems


def parse_value(text: str) -> Any:
    """Return one YAML value, for example the right side of an override. Raises `ConfigError`."""
    value, problems = _parse(text, None)
    if problems:
        raise ConfigError(problems)
    return value


def dump_yaml(value: Any) -> str:
    """Return YAML that `parse_yaml` reads back as the same data, in the order given."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120
    )
    return text


def _parse(text: str, source: str | None) -> tuple[Any, list[Problem]]:
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"the configuration has {len(text)} characters; {MAX_CHARACTERS} is the limit", source=source)
    if re.match(r"\s*(?:(?:#|//)[^\n]*\n\s*)*[{\[]", text):
        text = _without_slash_comments(text)
    problems: list[Problem] = []
    try:
        node = yaml.compose(text, Loader=_Loader)
        _check_size(node, {}, source)
        return (None if node is None else _value(node, (), problems)), problems
    except yaml.MarkedYAMLError as error:
        mark, start = error.problem_mark or error.context_mark, error.context_mark
        begun = f", in what begins in line {start.line + 1}" if mark and start and start.line < mark.line else ""
        where = f" (line {mark.line + 1}, column {mark.column + 1}{begun})" if mark else ""
        problem = error.problem or error.context or ""
        if isinstance(error, yaml.composer.ComposerError) and error.context:
            problem = f"{error.context}, {problem}"
        remedy = "; indent with spaces" if "'\\t'" in problem else ""
        raise ConfigError(f"this is not valid YAML{where}: {problem}{remedy}", source=source) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position].split("\n")
        where = f" (line {len(before)}, column {len(before[-1]) + 1})"
        problem = f"the character U+{error.character:04X} is not allowed"
        raise ConfigError(f"this is not valid YAML{where}: {problem}", source=source) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"this is not valid YAML: {error}", source=source) from None
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply", source=source) from None


def _without_slash_comments(text: str) -> str:
    """Blank out `// comments` and tabs outside quotes, which occur in JSON written by hand."""
    token = re.compile(
        r"""(?P<kept>"(?:\\.|[^"\\])*"|'(?:''|[^'])*'|\#[^\n]*)"""
        r"""|(?P<comment>(?:^|(?<=[\s,{}\[\]"']))//[^\n]*)|(?P<tab>\t)""",
        re.MULTILINE,
    )
    return token.sub(lambda match: match["kept"] or (" " if match["tab"] else ""), text)


def _check_size(node: yaml.Node | None, sizes: dict[int, int], source: str | None) -> int:
    """Return the number of values below `node` with aliases expanded. Refuse an alias to a value that contains it."""
    if node is None:
        return 0
    if sizes.get(id(node)) == 0:
        raise ConfigError("an alias refers to the value that contains it", source=source)
    if id(node) not in sizes:
        sizes[id(node)] = 0
        total = 1 + sum(_check_size(child, sizes, source) for child in _children(node))
        if total > MAX_VALUES:
            raise ConfigError(f"the configuration has more than {MAX_VALUES} values", source=source)
        sizes[id(node)] = total
    return sizes[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    match node:
        case yaml.SequenceNode():
            yield from node.value
        case yaml.MappingNode():
            for key, value in node.value:
                yield key
                yield value


def _value(node: yaml.Node, path: tuple[str, ...], problems: list[Problem]) -> Any:
    match node:
        case yaml.SequenceNode() if node.tag == _TAG + "seq":
            return [_value(child, (*path, str(index)), problems) for index, child in enumerate(node.value)]
        case yaml.MappingNode() if node.tag == _TAG + "map":
            return _mapping(node, path, problems)
        case yaml.ScalarNode():
            return _scalar(node)
    raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark)


def _mapping(node: yaml.MappingNode, path: tuple[str, ...], problems: list[Problem]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
        if key_node.tag == _TAG + "merge":
            value = _value(value_node, path, problems)
            for base in reversed(value if isinstance(value, list) else [value]):
                if not isinstance(base, dict):
                    raise yaml.MarkedYAMLError(problem="<< needs a mapping", problem_mark=value_node.start_mark)
                merged.update(base)
            continue
        key, line = key_node.value, key_node.start_mark.line + 1
        if key in own:
            message = f"is given twice, in lines {lines[key]} and {line}; remove one of them"
            problems.append(Problem(".".join((*path, key)), message))
        own[key], lines[key] = _value(value_node, (*path, key), problems), line
    return {**merged, **own}


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= 100:
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        case "int":
            raise yaml.MarkedYAMLError(problem="this number is too long", problem_mark=node.start_mark)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark)
