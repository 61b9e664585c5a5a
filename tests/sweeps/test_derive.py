"""Expressions: what they compute, what they may not say, and how they fail."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sweeps import derive
from sweeps.errors import SpecError
from sweeps.names import names, sections

SCOPE = names(sections("sasrec", "rece"), {"dataloader.batch_size": "train.batch_size", "ipu": "interactions_per_user"})
VALUES = {"train.batch_size": 128, "loss.n_extra_chunks": 3, "interactions_per_user": 95, "catalog_size": 10**6}
PUBLISHED = "int((4. * (1 + 2 * n_extra_chunks) * min(catalog_size, {} * interactions_per_user)) ** 0.5)"


def value(text: str, **more: float) -> float:
    return derive.parse(text, SCOPE, "file.yaml: derived.loss.n_buckets").evaluate({**VALUES, **more})


@pytest.mark.parametrize("batch_size", ["batch_size", "train.batch_size", "dataloader.batch_size"])
def test_published_formula_under_every_name(batch_size: str) -> None:
    assert value(PUBLISHED.format(batch_size)) == 583


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 // 2 + 7 % 4", 6),
        ("-2 ** 2", -4),
        ("2 ** 10", 1024),
        ("int(2.9) + int(-2.9)", 0),
        ("round(2.5)", 2),
        ("round(2.25, 1)", 2.2),
        ("ceil(2.1) + floor(2.9)", 5),
        ("log2(8) + sqrt(16) + abs(-1)", 8.0),
        ("max(1, batch_size, 3)", 128),
        ("1 if batch_size > 100 else 2", 1),
        ("1 < 2 < 3 and not 2 < 1 or 1 > 2", True),
        ("1 < 3 < 2", False),
        ("batch_size\n  + 1", 129),
        (12, 12),
    ],
)
def test_arithmetic_is_pythons(text: str, expected: float) -> None:
    result = value(text)
    assert result == expected
    assert type(result) is type(expected)


@given(a=st.integers(-999, 999), b=st.integers(1, 999), c=st.floats(0.5, 99))
def test_agrees_with_python_on_plain_arithmetic(a: int, b: int, c: float) -> None:
    result = value(f"int({a} * {b} / {c!r}) + min({a}, {b}) ** 2 - {a} // {b}")
    assert result == int(a * b / c) + min(a, b) ** 2 - a // b


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("batch_size.__class__", "no attribute access"),
        ("().__class__.__bases__", "no attribute access"),
        ("(1).real", "no attribute access"),
        ("train.batch_size.real", "known names only, train.batch_size.real is none"),
        ("model_params.n_extra_chunks", "declare it under aliases, model_params.n_extra_chunks: <key>"),
        ("__import__('os').system('true')", "only plain calls"),
        ("open(1)", "only the functions"),
        ("eval(1)", "only the functions"),
        ("batch_size(1)", "only the functions"),
        ("sqr(4)", "did you mean sqrt?"),
        ("int(x=1)", "only plain calls"),
        ("max(*(1, 2))", "no starred"),
        ("min", "a call, such as min(...)"),
        ("lambda: 1", "no lambda"),
        ("[i for i in (1, 2)]", "no comprehension"),
        ("(1, 2)", "no tuple"),
        ("'text'", "numbers and names only"),
        ("f'{1}'", "no text"),
        ("int('3')", "numbers and names only"),
        ("None", "numbers and names only"),
        ("1j", "numbers and names only"),
        ("(x := 1)", "no assignment"),
        ("n_items[0]", "no subscript"),
        ("1 << 62", "only the operators"),
        ("6 & 3", "only the operators"),
        ("~1", "only the operators"),
        ("1 is 1", "no test of identity or membership"),
        ("n_extra_chunk", "did you mean n_extra_chunks?"),
        ("name", "could be model.name or loss.name"),
        ("loss.name", "text"),
        ("1 +", "invalid syntax"),
        ("1; 2", "invalid syntax"),
        ("import os", "invalid syntax"),
        ("", "an expression as text"),
        (None, "an expression as text"),
        (["1"], "an expression as text"),
        ("1" + " + 1" * 200, "801 characters; expected at most 500"),
        ("-" * 100 + "1", "levels of nesting"),
        ("(" * 250 + "1" + ")" * 250, "an expression of 501 characters"),
        ("(" * 240 + "1" + ")" * 240, "too many nested parentheses"),
    ],
)
def test_refuses_everything_but_arithmetic(text: object, law: str) -> None:
    with pytest.raises(SpecError, match=r"^file\.yaml: derived\.loss\.n_buckets: ") as caught:
        derive.parse(text, SCOPE, "file.yaml: derived.loss.n_buckets")
    assert law in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("9 ** 9 ** 9 ** 9", "an exponent of at most 64"),
        ("10.0 ** 100", "an exponent of at most 64"),
        ("(10 ** 60) ** 60", "a base of at most 1e+18"),
        ("batch_size / (n_extra_chunks - 3)", "divides by zero"),
        ("batch_size % 0", "divides by zero"),
        ("1e308 * 10", "expected a finite number"),
        ("1e308 * 10 - 1e308 * 10", "expected a finite number"),
        ("9" * 400, "expected a finite number"),
        ("int(1e308 * 10)", "range of numbers"),
        ("sqrt(-1)", "domain"),
        ("(-8) ** 0.5", "no real number"),
        ("log2(0)", "domain"),
        ("min(1)", "not iterable"),
        ("abs(1, 2)", "one argument"),
        ("round(5, -1000000000)", "-15 to 15 digits"),
        ("patience + 1", "train.patience is null"),
    ],
)
def test_failure_names_place_and_law(text: str, law: str) -> None:
    expression = derive.parse(text, SCOPE, "file.yaml: derived.loss.n_buckets")
    with pytest.raises(SpecError, match=r"^file\.yaml: derived\.loss\.n_buckets: ") as caught:
        expression.evaluate({**VALUES, "train.patience": None})
    assert law in str(caught.value)


def test_failure_tells_the_values_that_it_read() -> None:
    with pytest.raises(SpecError, match=r"with loss\.n_extra_chunks = 3, train\.batch_size = 128; it divides by zero"):
        value("batch_size / (n_extra_chunks - 3)")


def test_reads_only_what_it_names() -> None:
    expression = derive.parse("dataloader.batch_size * ipu", SCOPE, "p")
    assert expression.names == {"train.batch_size", "interactions_per_user"}


def test_derived_values_come_in_the_order_of_their_dependencies() -> None:
    derived = {"loss.n_buckets": "rounds * 2", "loss.rounds": "n_extra_chunks + 1", "loss.n_extra_chunks": "3"}
    program = derive.program(derived, [], SCOPE, {key: key for key in derived})
    assert [key for key, _ in program.derived] == ["loss.n_extra_chunks", "loss.rounds", "loss.n_buckets"]


@pytest.mark.parametrize(
    "derived",
    [{"loss.rounds": "rounds + 1"}, {"loss.rounds": "n_buckets", "loss.n_buckets": "2 * loss.rounds"}],
)
def test_cycles_are_named(derived: dict[str, str]) -> None:
    with pytest.raises(SpecError, match=r"expected no cycle \(loss\..* -> loss\..*\)"):
        derive.program(derived, [], SCOPE, {key: key for key in derived})


@pytest.mark.parametrize("text", ["n_buckets", "n_buckets + 1", "min(1, 2)", "True"])
def test_a_constraint_compares(text: str) -> None:
    with pytest.raises(SpecError, match="expected a comparison"):
        derive.program({}, [("constraints[0]", text)], SCOPE, {})
