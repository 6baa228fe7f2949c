"""Small edits that could be made of a source: each changes one operator, constant or statement, as a slip would.

Not edited, since no test should hold it: texts and what is only said (messages of errors, logs, warnings, output),
annotations, decorators, assertions, `if TYPE_CHECKING`, `__repr__` and its like.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
REPLACED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
SHOWN = {"__repr__", "__str__", "__rich__", "extra_repr"}
SAID = {"_log", "_log_once", "log_once", "warn", "echo", "print", "secho", "Problem", "Exit", "Argument", "Option"}
"""Calls whose arguments are words for people."""


@dataclass(frozen=True)
class Edit:
    """A piece of a file and what comes in its place."""

    path: str
    line: int
    column: int
    kind: str
    start: int
    stop: int
    before: str
    after: str
    is_default: bool = False
    """It changes a default, of a parameter or a field, or a number that has a name."""

    def apply(self, text: str) -> str:
        """Return the text with the edit."""
        return text[: self.start] + self.after + text[self.stop :]


def edits(path: str, text: str) -> list[Edit]:
    """Return all edits of a file, in the order of its text."""
    finder = _Finder(path, text)
    finder.visit(ast.parse(text))
    return sorted(finder.found, key=lambda edit: (edit.start, edit.stop, edit.kind, edit.after))


def called(call: ast.Call) -> set[str]:
    """Return the names in `a.b.c(...)`."""
    names, function = set(), call.func
    while isinstance(function, ast.Attribute):
        names.add(function.attr)
        function = function.value
    return {*names, function.id} if isinstance(function, ast.Name) else names


SYMMETRIC = {"min", "max", "gcd", "lcm"}
"""Calls that return the same whatever the order of their arguments."""


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.found: list[Edit] = []
        self._default = False
        lines = text.splitlines(keepends=True)
        self._starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
        self._lines = lines

    def _place(self, line: int, offset: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:offset].decode())

    def _add(self, kind: str, node: Any, after: str) -> None:
        start = self._place(node.lineno, node.col_offset)
        stop = self._place(node.end_lineno, node.end_col_offset)
        before = self.text[start:stop]
        self.found.append(
            Edit(self.path, node.lineno, node.col_offset, kind, start, stop, before, after, self._default)
        )

    # What is not edited.

    def _pass_over(self, node: ast.AST) -> None:
        pass

    visit_JoinedStr = visit_Assert = visit_Import = visit_ImportFrom = visit_Raise = _pass_over

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "__name__ == '__main__'"):
            self._body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._default = isinstance(node.target, ast.Name) and (self._in_class or node.target.id.isupper())
            self.visit(node.value)
            self._default = False

    # Definitions.

    _in_class = False

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self._in_class = self._in_class, True
        self._statements(node)
        self._in_class = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in SHOWN or all(_says_nothing(statement) for statement in node.body):
            return
        before, self._in_class = self._in_class, False
        self._default = True
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._default = False
        self._statements(node)
        self._in_class = before

    # Statements.

    def _body(self, node: ast.AST) -> None:
        """Look into a statement's expressions and into the statements below it."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                self._body(child)
            elif not isinstance(child, ast.pattern):
                self.visit(child)

    def _statements(self, node: Any) -> None:
        for child in node.body:
            self._statement(child)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                return
            case ast.Expr(value=ast.Call() as call) if called(call) & SAID:
                return
            case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
                self._add("dropped statement", node, "pass")
            case ast.Return(value=None):
                self._add("dropped statement", node, "pass")
            case ast.Assign(targets=[ast.Name(id=name)]) if name.isupper() and not self._in_class:
                self._default = True
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if not self._in_class:
                self._add("dropped statement", node, "pass")
        self.visit(node)
        self._default = False

    visit_Module = _statements
    visit_For = visit_While = visit_With = visit_Try = visit_Match = _body
    visit_AsyncFunctionDef = visit_AsyncFor = visit_AsyncWith = _pass_over

    # Expressions.

    def visit_Call(self, node: ast.Call) -> None:
        names = called(node)
        if names & SAID:
            return
        plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
        if len(plain) == len(node.args) and len(plain) > 1 and not names & SYMMETRIC:
            for index in range(len(plain) - 1):
                order = [*plain[:index], plain[index + 1], plain[index], *plain[index + 2 :]]
                swapped = ast.Call(node.func, list(order), node.keywords)
                if ast.unparse(plain[index]) != ast.unparse(plain[index + 1]):
                    self._add("swapped arguments", node, ast.unparse(swapped))
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if not (keyword.arg == "strict" and "zip" in names):  # it checks what no input can cause
                self.visit(keyword.value)

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            other = [*node.ops[:index], COMPARED[type(operator)](), *node.ops[index + 1 :]]
            self._add("comparison", node, f"({ast.unparse(ast.Compare(node.left, other, node.comparators))})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._add("and/or", node, f"({ast.unparse(ast.BoolOp(other, node.values))})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = any(isinstance(side, ast.JoinedStr | ast.Constant) and not _number(side) for side in _sides(node))
        if not texts and type(node.op) in REPLACED:
            self._add(
                "arithmetic", node, f"({ast.unparse(ast.BinOp(node.left, REPLACED[type(node.op)](), node.right))})"
            )
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        number = isinstance(node.operand, ast.Constant)  # edited as a constant
        if isinstance(node.op, ast.Not) or (isinstance(node.op, ast.USub) and not number):
            kind = "removed not" if isinstance(node.op, ast.Not) else "removed minus"
            self._add(kind, node, f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        kind = "default" if self._default else "constant"
        match node.value:
            case bool(value):
                self._add(kind, node, str(not value))
            case int(value):
                self._add(kind, node, str(value + 1))
                self._add(kind, node, str(value - 1) if value > 0 else f"({value - 1})")
            case float(value):
                self._add(kind, node, repr(2 * value if value else 1.0))


def _sides(node: ast.BinOp) -> Iterator[ast.expr]:
    """Yield the operands of a sum of sums."""
    for side in (node.left, node.right):
        if isinstance(side, ast.BinOp):
            yield from _sides(side)
        else:
            yield side


def _says_nothing(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, `...` or `pass`."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)
