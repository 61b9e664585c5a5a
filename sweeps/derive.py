"""Derived values and constraints: arithmetic in a search space, evaluated by simpleeval, never by Python itself.

An expression is checked once, when the file is read: only numbers, known names, arithmetic, comparisons, `and or not`,
`a if c else b` and the functions below pass. A dotted name is no attribute access: it must be known, and is replaced in
the syntax tree before anything is evaluated. Then the expression is evaluated once a cell.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from simpleeval import InvalidExpression, SimpleEval

from seqrec.config import suggest
from seqrec.errors import message
from sweeps.errors import SpecError
from sweeps.names import Names, Number

MAX_LENGTH = 500
"""Characters of an expression."""
MAX_DEPTH = 40
"""Levels of nesting."""
MAX_BASE, MAX_EXPONENT = 1e18, 64
"""Of a power: larger ones would take memory and time without bound."""


@dataclass(frozen=True)
class Expression:
    """A checked expression."""

    text: str
    place: str
    """Where it stands, for messages."""
    names: frozenset[str]
    """Keys that it reads."""
    tree: ast.expr

    def evaluate(self, values: Mapping[str, Number | None]) -> Number:
        """The value for a cell. `values`: by key. Raises SpecError, with the values it read, if none is finite."""
        unset = sorted(name for name in self.names if values[name] is None)
        if unset:
            raise SpecError(f"{self.place}: got {self.text!r}; {unset[0]} is null and has no number.")
        _EVALUATOR.names = values
        try:
            result = _EVALUATOR.eval(self.text, previously_parsed=self.tree)
        except (ArithmeticError, ValueError, TypeError, InvalidExpression) as error:
            raise SpecError(f"{self.told(values)}; {_plain(error)}.") from None
        if not isinstance(result, int | float) or not _is_finite(result):
            raise SpecError(f"{self.told(values)}, which is {_shown(result)}; expected a finite number.")
        return result

    def told(self, values: Mapping[str, Number | None]) -> str:
        """The beginning of a message: place, expression, and what it read."""
        read = ", ".join(f"{name} = {values[name]}" for name in sorted(self.names))
        return f"{self.place}: got {_cut(self.text)!r}" + (f" with {read}" if read else "")


@dataclass(frozen=True)
class Program:
    """The expressions of one block, ready to run for every cell."""

    derived: tuple[tuple[str, Expression], ...]
    """(key, expression), each after those that it reads."""
    early: tuple[Expression, ...]
    """Constraints that read no derived value: they can drop a cell whose expressions would fail."""
    late: tuple[Expression, ...]
    """The other constraints."""

    def reads(self, key: str) -> bool:
        return any(key in e.names for e in (*(e for _, e in self.derived), *self.early, *self.late))


def parse(text: object, names: Names, place: str) -> Expression:
    """A checked expression. Raises SpecError, its message starting with `place`, for anything but plain arithmetic."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not text.strip():
        raise SpecError(message(place, text, "an expression as text"))
    if len(text) > MAX_LENGTH:
        raise SpecError(f"{place}: got an expression of {len(text)} characters; expected at most {MAX_LENGTH}.")
    text = " ".join(text.split())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise SpecError(message(place, _cut(text), f"an expression ({reason})")) from None
    reader = _Reader(text, names, place)
    tree = reader.read(tree, 1)
    return Expression(text, place, frozenset(reader.used), tree)


def program(
    derived: Mapping[str, object],
    constraints: Iterable[tuple[str, object]],
    names: Names,
    places: Mapping[str, str],
) -> Program:
    """The expressions of a block in the order in which they can be evaluated.

    constraints: (place, text). places: of each derived key. Raises SpecError for a bad expression, a cycle, or a
    constraint that is no comparison.
    """
    expressions = {key: parse(text, names, places[key]) for key, text in derived.items()}
    graph = {key: {name for name in e.names if name in expressions} for key, e in expressions.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = error.args[1]
        raise SpecError(
            f"{places[cycle[0]]}: got {expressions[cycle[0]].text!r}; expected no cycle ({' -> '.join(cycle)})."
        ) from None
    checks = []
    for place, text in constraints:
        check = parse(text, names, place)
        if not isinstance(check.tree, ast.Compare | ast.BoolOp) and not _is_negation(check.tree):
            raise SpecError(message(place, check.text, "a comparison, such as n_negatives < catalog_size"))
        checks.append(check)
    late = tuple(check for check in checks if not check.names.isdisjoint(expressions))
    early = tuple(check for check in checks if check.names.isdisjoint(expressions))
    return Program(tuple((key, expressions[key]) for key in order), early, late)


class _Reader:
    """Walks a syntax tree, refuses what is not arithmetic, and puts the keys in the place of the names."""

    def __init__(self, text: str, names: Names, place: str) -> None:
        self.text, self.names, self.place = text, names, place
        self.used: set[str] = set()

    def read(self, node: ast.expr, depth: int) -> ast.expr:
        if depth > MAX_DEPTH:
            raise self._refusal(f"at most {MAX_DEPTH} levels of nesting")
        match node:
            case ast.Constant(value=bool() | int() | float()):
                return node
            case ast.Constant():
                raise self._refusal("numbers and names only")
            case ast.Name(id=name) if name in FUNCTIONS and name not in self.names.known:
                raise self._refusal(f"a call, such as {name}(...)")
            case ast.Name() | ast.Attribute():
                return ast.Name(id=self._key(node), ctx=ast.Load())
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return ast.UnaryOp(op, self.read(operand, depth + 1))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return ast.BinOp(self.read(left, depth + 1), op, self.read(right, depth + 1))
            case ast.BoolOp(op=op, values=values):
                return ast.BoolOp(op, [self.read(value, depth + 1) for value in values])
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in OPERATORS for op in ops):
                return ast.Compare(self.read(left, depth + 1), ops, [self.read(other, depth + 1) for other in others])
            case ast.IfExp(test=test, body=body, orelse=other):
                return ast.IfExp(*(self.read(part, depth + 1) for part in (test, body, other)))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                return ast.Call(ast.Name(name, ast.Load()), [self.read(a, depth + 1) for a in arguments], [])
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                raise self._refusal(f"only the functions {', '.join(FUNCTIONS)}", suggest(name, FUNCTIONS))
            case ast.Call():
                raise self._refusal(f"only plain calls of {', '.join(FUNCTIONS)}")
            case ast.BinOp() | ast.UnaryOp():
                raise self._refusal("only the operators + - * / // % **")
            case _:
                raise self._refusal(f"plain arithmetic, no {_KINDS.get(type(node), type(node).__name__.lower())}")

    def _key(self, node: ast.expr) -> str:
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            raise self._refusal("no attribute access")
        name = ".".join([inner.id, *parts])
        if parts and name not in self.names and inner.id in self.names:
            raise self._refusal("no attribute access")
        key = self.names.resolve(name, self.place, _cut(self.text))
        self.used.add(key)
        return key

    def _refusal(self, law: str, hint: str | None = None) -> SpecError:
        return SpecError(message(self.place, _cut(self.text), law, hint))


_KINDS: dict[type[ast.AST], str] = {
    ast.Lambda: "lambda",
    ast.Subscript: "subscript",
    ast.ListComp: "comprehension",
    ast.SetComp: "comprehension",
    ast.DictComp: "comprehension",
    ast.GeneratorExp: "comprehension",
    ast.JoinedStr: "text",
    ast.NamedExpr: "assignment",
    ast.Compare: "test of identity or membership",
}


def _is_negation(tree: ast.expr) -> bool:
    return isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: object) -> str:
    text = str(value) if not isinstance(value, int) or abs(value) < 10**30 else "an integer beyond any float"
    return text if len(text) <= 60 else text[:57] + "..."


def _cut(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."


def _plain(error: Exception) -> str:
    if isinstance(error, ZeroDivisionError):
        return "it divides by zero"
    if isinstance(error, OverflowError):
        return "it exceeds the range of numbers"
    return str(error).rstrip(".") or type(error).__name__


def _power(base: Number, exponent: Number) -> Number:
    if abs(base) > MAX_BASE or abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"a power may have a base of at most {MAX_BASE:g} and an exponent of at most {MAX_EXPONENT}")
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("a root of a negative number is no real number")
    return result


def _int(value: Number) -> int:
    return int(value)


def _float(value: Number) -> float:
    return float(value)


def _round(value: Number, digits: int = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > 15:
        raise ValueError("round takes -15 to 15 digits")
    return round(value, digits) if digits else round(value)


FUNCTIONS: dict[str, Callable[..., Number]] = {
    "int": _int,
    "float": _float,
    "min": min,
    "max": max,
    "round": _round,
    "sqrt": math.sqrt,
    "ceil": math.ceil,
    "floor": math.floor,
    "log2": math.log2,
    "abs": abs,
}
"""`int` cuts towards zero, as Python's does."""

OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

_EVALUATOR = SimpleEval(operators=OPERATORS, functions=FUNCTIONS, names={})
