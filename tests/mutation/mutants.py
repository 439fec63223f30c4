"""The mutants of a module: its source with one small fault each, of kinds that programmers make.

Pure. A statement is left out, a condition negated, one side of an `and`, `or` or `|` dropped,
a comparison moved by its edge, a number raised by one, a boolean flipped, `+`, `min` or `any`
exchanged for its opposite, a result forgotten, an error not handled.

Not mutated, for no user notices it or types catch it: what is logged or raised in words,
annotations, decorators, strings, amounts of constants, imports, assertions;
nor is what the type checker finds: a result that is missing, a field that is not set.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

# What an operator, or a function, is exchanged for.
_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
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
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
}
_OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_NEUTRAL_ARGUMENTS = {"daemon", "indent", "thread_name_prefix"}
_NEUTRAL_FLAGS = ("O_CLOEXEC", "O_RDONLY")  # Python sets the one by itself; the other is 0
_LOGGERS = {"logger", "_log", "logging"}
_NEGATED_BY_ITS_OPERATOR = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
_Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


class Mutant(NamedTuple):
    """One fault. `function` is where it is: names from the module's top, empty outside of any."""

    function: tuple[str, ...]
    first_line: int  # of the statement, or of a compound one's head
    last_line: int
    old: str  # the changed lines, stripped
    new: str
    source: str  # of the whole module, with the fault


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, in the order of its lines."""
    return _Maker(source).mutants()


class _Maker:
    def __init__(self, source: str) -> None:
        self._lines = source.splitlines(keepends=True)
        self._tree = ast.parse(source)

    def mutants(self) -> Iterator[Mutant]:
        yield from self._block(self._tree.body, ())

    def _block(self, body: list[ast.stmt], names: tuple[str, ...]) -> Iterator[Mutant]:
        """Yield those of statements; `names` lead to the function or class that they are in."""
        for statement in body:
            if isinstance(statement, (*_Functions, ast.ClassDef)):
                yield from self._block(statement.body, (*names, statement.name))
            elif not _says_only(statement):
                for old, new in _changes(statement, is_constant=not self._is_function(names)):
                    if not self._is_caught_by_types(names, old, new):
                        yield self._mutant(names, statement, old, new)
                for part in _bodies(statement):
                    yield from self._block(part, names)

    def _is_caught_by_types(self, names: tuple[str, ...], old: ast.AST, new: str) -> bool:
        """Return whether mypy sees it: no result where one is promised, a field that is not set."""
        if isinstance(old, ast.Return) and new == "return None":
            promised = self._promised(names)
            return promised is not None and not promised.endswith("None")
        is_field = isinstance(old, (ast.Assign, ast.AnnAssign)) and new == "pass"
        return is_field and names[-1:] == ("__init__",)

    def _promised(self, names: tuple[str, ...]) -> str | None:
        """Return the annotation of what a function returns; None if it has none."""
        body = self._tree.body
        node: ast.stmt | None = None
        for name in names:
            found = (n for part in _all_statements(body) for n in [part] if _name(n) == name)
            node = next(found, None)
            body = getattr(node, "body", [])
        returns = getattr(node, "returns", None)
        return None if returns is None else ast.unparse(returns)

    def _is_function(self, names: tuple[str, ...]) -> bool:
        return bool(self._outermost_function(names))

    def _outermost_function(self, names: tuple[str, ...]) -> tuple[str, ...]:
        body: list[ast.stmt] = self._tree.body
        for depth, name in enumerate(names):
            node = next(n for n in body if getattr(n, "name", None) == name)
            if isinstance(node, _Functions):
                return names[: depth + 1]
            assert isinstance(node, ast.ClassDef)
            body = node.body
        return ()

    def _mutant(
        self, names: tuple[str, ...], statement: ast.stmt, old: ast.AST, new: str
    ) -> Mutant:
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        parts = [part for part in _bodies(statement) if part]
        if parts:
            last = max(first, parts[0][0].lineno - 1)
        if isinstance(old, ast.ExceptHandler):  # all of its body
            first = last = old.body[0].lineno
            place = _place(old.body[0], old.body[-1])
        else:
            place = _place(old, old)
        (top, left), (bottom, right) = place
        begin = self._lines[top - 1].encode()[:left].decode()
        end = self._lines[bottom - 1].encode()[right:].decode()
        # As many lines as before, so that what follows keeps its place.
        replaced = [*f"{begin}{new}{end}".splitlines(keepends=True), *["\n"] * (bottom - top)]
        lines = [*self._lines[: top - 1], *replaced, *self._lines[bottom:]]
        return Mutant(
            self._outermost_function(names),
            first,
            last,
            _stripped(self._lines[top - 1 : bottom]),
            _stripped([f"{begin}{new}{end}"]),
            "".join(lines),
        )


def _name(statement: ast.stmt) -> str | None:
    return getattr(statement, "name", None)


def _all_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, and those in them, but not those of functions and classes."""
    for statement in body:
        yield statement
        if _name(statement) is None:
            for part in _bodies(statement):
                yield from _all_statements(part)


def _place(first: ast.AST, last: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    begin, end = (first.lineno, first.col_offset), (last.end_lineno, last.end_col_offset)  # type: ignore[attr-defined]
    return begin, end


def _stripped(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "handlers", "orelse", "finalbody"):
        for part in [getattr(statement, name, [])]:
            if name == "handlers":
                yield from (handler.body for handler in part)
            else:
                yield part


def _says_only(statement: ast.stmt) -> bool:
    """Return whether a statement is a log line, a docstring, an import or an assertion."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Expr(ast.Constant()):
            return True
        case ast.Expr(ast.Call(ast.Attribute(ast.Name(name)))):
            return name in _LOGGERS
        case ast.If(ast.Name("TYPE_CHECKING")):
            return True
    return False


def _changes(statement: ast.stmt, *, is_constant: bool) -> Iterator[tuple[ast.AST, str]]:
    """Yield what is replaced of one statement, and by which text; not of those it contains."""
    match statement:
        case ast.Expr(ast.Call()) | ast.Delete() | ast.Raise() | ast.Break():
            yield statement, "pass"
        case ast.Continue():
            yield statement, "break"
        case ast.Return(None):
            yield statement, "pass"
        case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant):
            yield statement, "return None"
        case ast.Assign([ast.Attribute() | ast.Subscript()]) | ast.AnnAssign(ast.Attribute()):
            yield statement, "pass"
        case ast.AugAssign() if type(statement.op) in _SWAPS:
            changed = copy.deepcopy(statement)
            changed.op = _swapped(statement.op)
            yield statement, ast.unparse(changed)
        case ast.AugAssign():
            yield statement, "pass"
        case ast.If(test) | ast.While(test):
            if new := _negated(test):
                yield test, new
        case ast.Try():
            for handler in statement.handlers:
                is_raised = isinstance(handler.body[-1], ast.Raise)
                if not is_raised:
                    yield handler, "raise"
    if isinstance(statement, ast.Raise):
        return  # the rest is wording
    for child in _expressions(statement):
        yield from _expression_changes(child, is_constant=is_constant)


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    if isinstance(statement, ast.AnnAssign):
        yield from [statement.value] if statement.value else []
        return
    for node in ast.iter_child_nodes(statement):
        if isinstance(node, ast.expr):
            yield node
        elif isinstance(node, ast.withitem):
            yield node.context_expr


def _expression_changes(node: ast.AST, *, is_constant: bool) -> Iterator[tuple[ast.AST, str]]:
    if isinstance(node, ast.JoinedStr):
        return
    for new in _replacements(node, is_constant=is_constant):
        yield node, new
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword) and child.arg in _NEUTRAL_ARGUMENTS:
            continue
        if isinstance(child, (ast.expr, ast.comprehension, ast.keyword)):
            yield from _expression_changes(child, is_constant=is_constant)


def _replacements(node: ast.AST, *, is_constant: bool) -> Iterator[str]:
    match node:
        case ast.BoolOp():
            for dropped in range(len(node.values)):
                kept = [value for i, value in enumerate(node.values) if i != dropped]
                rest = kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
                yield f"({ast.unparse(rest)})"
        case ast.BinOp(left, ast.BitOr(), right):
            for side, other in ((left, right), (right, left)):
                if not ast.unparse(other).endswith(_NEUTRAL_FLAGS):
                    yield f"({ast.unparse(side)})"
        case ast.BinOp() if type(node.op) in _SWAPS:
            changed = copy.copy(node)
            changed.op = _swapped(node.op)
            yield f"({ast.unparse(changed)})"
        case ast.Compare(ops=[op]) if type(op) in _SWAPS:
            compared = copy.copy(node)
            compared.ops = [_swapped(op)]
            yield ast.unparse(compared)
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                compared = copy.copy(node)
                compared.ops = [*ops[:i], _swapped(op), *ops[i + 1 :]]
                yield ast.unparse(compared)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield f"({ast.unparse(operand)})"
        case ast.IfExp(test):
            if new := _negated(test):
                changed_if = copy.copy(node)
                changed_if.test = ast.parse(new, mode="eval").body
                yield f"({ast.unparse(changed_if)})"
        case ast.Call(ast.Name(name)) if name in _OPPOSITES:
            called = copy.copy(node)
            called.func = ast.Name(_OPPOSITES[name])
            yield ast.unparse(called)
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() as number) if not is_constant:
            yield str(number + 1)
        case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp():
            for index, part in enumerate(node.generators):
                if part.ifs:
                    without = copy.deepcopy(node)
                    without.generators[index].ifs = []
                    yield ast.unparse(without)


def _swapped(operator: ast.AST) -> Any:
    return _SWAPS[type(operator)]()


def _negated(test: ast.expr) -> str | None:
    """Return the opposite of a condition; None if a mutant of its parts is that already."""
    match test:
        case ast.Compare(ops=[op]) if isinstance(op, _NEGATED_BY_ITS_OPERATOR):
            return None
        case ast.UnaryOp(ast.Not()) | ast.BoolOp():
            return None
    return f"not ({ast.unparse(test)})"
