"""Expressions: what they give, what they refuse, and what their errors do not say."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.expressions import (
    Expression,
    ExpressionError,
    MissingValue,
    Scope,
    plain,
)

SECRET = "s3cr3t-canary"
CONTEXT: dict[str, Any] = {
    "event": {
        "type": "issues.opened",
        "payload": {"n": 7, "f": 2.5, "s": "text", "none": None, "l": [1, 2], "secret": SECRET},
    },
    "input": {"amount": "12.5", "go": True},
}


def evaluate(text: str) -> object:
    return Expression.parse(text).evaluate(CONTEXT)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("event.payload.n + 1", 8),
        ("event.payload.n > 1 && event.type.startsWith('issues.')", True),
        ("event.payload.l[1]", 2),
        ("event.payload['s']", "text"),
        ("event.payload.l", [1, 2]),
        ("{'a': event.payload.f, 'b': [null]}", {"a": 2.5, "b": [None]}),
        ("1.0 + 1.0", 2),
        ("0.5 + 0.25", 0.75),
        ("has(event.payload.x) ? 1 : 2", 2),
        ("event.payload.n in event.payload.l", False),
        ("duration('1h30m')", "5400s"),
        ("duration('1.5s')", "1.5s"),
        ("timestamp('2024-01-01T00:00:00Z')", "2024-01-01T00:00:00Z"),
        ("timestamp('2024-01-01T00:00:00Z') + duration('1h')", "2024-01-01T01:00:00Z"),
        ("'a.map(b, c)' + ' // all(x, y)'", "a.map(b, c) // all(x, y)"),
        ("size(event.payload.s) // a comment with map(x, y)", 4),
        ("event.payload.s.matches('^[a-z]{4}$')", True),
        ("r'\\d'.matches(r'\\\\d')", True),
    ],
)
def test_an_expression_gives_json(text: str, result: object) -> None:
    found = evaluate(text)
    assert found == result and type(found) is type(result)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("default(event.payload.gone, 3)", 3),
        ("default(event.payload.gone.further, 3)", 3),
        ("default(event.payload.none, 3)", 3),
        ("default(event.payload.none.further, 3)", 3),
        ("default(event.payload.s.further, 3)", 3),
        ("default(event.payload.l[9], 3)", 3),
        ("default(event.payload.none[0], 3)", 3),
        ("default(event.payload['gone'], 3)", 3),
        ("default(event.payload.n, 3)", 7),
        ("default(false, true)", False),
        ("default(default(input.a, input.b), default(input.c, 'd'))", "d"),
        ("default(event.payload.gone, {'a': [1, 2]}).a[1]", 2),
        ("default(input.a, 1) + default(input.b, 2)", 3),
        ("default(num(input.gone), 1.5)", 1.5),
        ("'default(a, b)'", "default(a, b)"),
        ("num(input.amount) * 100.0", 1250),
        ("num(event.payload.n) / 2.0", 3.5),
        ("num(' -1e3 ')", -1000),
        ("true || num('x') > 1.0", True),
        ("input.go ? 1 : default(1 / 0, 2)", 1),
    ],
)
def test_default_and_num(text: str, result: object) -> None:
    assert evaluate(text) == result


@pytest.mark.parametrize(
    "text",
    [
        "event.payload.gone",
        "input.gone.further",
        "event.payload.l[9]",
        "event.payload.none.x",
        "default(input.a, input.b)",
        "num(input.gone)",
        "num(event.payload.none)",
    ],
)
def test_a_missing_value_is_told_from_other_faults(text: str) -> None:
    with pytest.raises(MissingValue):
        evaluate(text)


def test_the_missing_name_is_said() -> None:
    with pytest.raises(MissingValue, match="there is no gone"):
        evaluate("event.payload.gone")


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("'unfinished", 0),
        ("input.a +", 9),
        ("(" * 33 + "1" + ")" * 33, 32),
        ("dance(1)", 0),
        ("[1].transformList(i, v, v)", 4),
        ("default(1)", 0),
        ("1 + num(1, 2)", 4),
        ("__call_1", 0),
        ("1 + .input.a", 4),
        (".input", 0),
        ("input.a.matches(input.b)", 8),
        ("matches('a', 'b')", 0),
        ("'a'.matches('(')", 12),
        ("'a'.matches('(a{9}){9}')", 12),
        ("'a'.matches('\\x61\\x7b99\\x7d')", 12),
        ("`a`", 0),
        ("", 0),
    ],
)
def test_what_is_refused_before_it_runs(text: str, position: int) -> None:
    with pytest.raises(ExpressionError) as refused:
        Expression.parse(text)
    assert refused.value.position == position


@pytest.mark.parametrize(
    "text",
    [
        "'" + "x" * 4096 + "'",
        "+".join(["input.a"] * 34),
        " || ".join(["input.a.matches('x')"] * 5),
        "input.a.matches('" + "x" * 257 + "')",
    ],
    ids=["long", "many additions", "many patterns", "a long pattern"],
)
def test_too_much_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "event.payload.secret + 1",
        "event.payload[event.payload.secret]",
        "event.payload.l[event.payload.secret]",
        "num(event.payload.secret)",
        "int(event.payload.secret)",
        "timestamp(event.payload.secret)",
        "event.payload.secret > 1",
        "event.payload.secret.x + ''",
        "event.payload.secret ? 1 : 2",
        "default(event.payload[event.payload.secret], num(event.payload.secret))",
    ],
)
def test_errors_never_repeat_a_value(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExpressionError) as failed:
        evaluate(text)
    chain = repr(failed.value) + str(failed.value.__cause__)
    assert SECRET not in chain and failed.value.__suppress_context__
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize(
    "text", ["b'a'", "{1: 2}", "1.0 / 0.0", "[b'a']", "9223372036854775807 + 1", "1 / 0"]
)
def test_what_json_cannot_hold_is_no_result(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)


def test_a_result_is_bounded() -> None:
    with pytest.raises(ExpressionError, match="longer than"):
        Expression.parse("[input.a, input.a]").evaluate({"input": {"a": "x" * 600_000}})


def test_a_condition_is_true_or_false() -> None:
    assert Expression.parse("input.go").holds(CONTEXT)
    assert not Expression.parse("!input.go").holds(CONTEXT)
    with pytest.raises(ExpressionError, match="true or false"):
        Expression.parse("input.amount").holds(CONTEXT)


def test_a_scope_serves_many_expressions() -> None:
    scope = Scope(CONTEXT)
    assert Expression.parse("default(input.a, 1)").evaluate(scope) == 1
    assert Expression.parse("default(input.a, 2)").evaluate(scope) == 2
    assert Expression.parse("input.amount").evaluate(scope) == "12.5"


def test_text_that_is_no_unicode_does_not_stop_the_rest() -> None:
    context = {"input": {"a": "\ud800", "b": [{"c": "x"}]}}
    assert Expression.parse("input.b[0].c + input.a").evaluate(context) == "x?"


def test_a_deep_value_is_no_crash() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    assert Expression.parse("size(input.d)").evaluate({"input": {"d": deep}}) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps.one.output.x", None),
        ("steps['one'].output", None),
        ("event.anything.at.all", None),
        ("default(steps.one, event.x)", None),
        ("steps.two.output", "steps has no two; it has one"),
        ("steps['two']", "steps has no two; it has one"),
        ("default(steps.two.x, 1)", "steps has no two; it has one"),
        ("evnt.x", "nothing is called evnt; there is event, steps"),
        ("event.evnt", None),
        ("event[event.x]", None),
        ("steps['t' + 'wo']", None),
        ("steps[r'two']", None),
        ("size(steps)", None),
    ],
)
def test_names_are_checked_before_it_runs(text: str, problem: str | None) -> None:
    assert Expression.parse(text).problem({"event": None, "steps": ["one"]}) == problem


def test_what_may_run_ends_soon() -> None:
    text = "+".join(["input.a"] * 33)
    large = {"input": {"a": "x" * 2**18}}
    began = time.monotonic()
    with pytest.raises(ExpressionError, match="longer than"):
        Expression.parse(text).evaluate(large)
    assert time.monotonic() - began < 2


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_a_value_goes_through_as_it_is(value: Any) -> None:
    assert Expression.parse("input.x").evaluate({"input": {"x": value}}) == plain(value)


@settings(max_examples=300)
@given(st.text(alphabet="ab.()[]{}'\"\\?:+ \n/,1mrbapdeflt", max_size=60))
def test_any_text_is_an_expression_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        Expression.parse(text).evaluate({"a": {"b": 1}, "b": "x"})
