"""Comprehensions: what they give, how deep they may nest, and what they may name."""

from typing import Any

import pytest

from services.chassis.expressions import Expression, ExpressionError, MissingValue

CONTEXT: dict[str, Any] = {
    "event": {
        "labels": [{"name": "bug", "by": {"id": 1}}, {"name": "p1", "by": None}, {"name": "x"}],
        "prices": ["1.5", 2, {"of": "3"}],
        "o": {"k": 1},
    },
    "x": "the outer x",
}


def evaluate(text: str) -> object:
    return Expression.parse(text).evaluate(CONTEXT)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("event.labels.map(x, x.name)", ["bug", "p1", "x"]),
        ("event.labels.map(x, has(x.by), x.name)", ["bug", "p1"]),
        ("event.labels.exists(x, x.name == 'bug')", True),
        ("event.labels . // why\n all (x, x.name != '')", True),
        ("event.labels.exists_one(x, x.name == 'p1')", True),
        ("event.labels.filter(x, x.name == 'x').size()", 1),
        ("event.o.map(k, k)", ["k"]),
        ("[1].map(x, x)[0] == 1 ? x : ''", "the outer x"),
        ("[1, 2].map(x, [10, 20].map(y, x * y))", [[10, 20], [20, 40]]),
        ("[1].map(x, x).map(x, x).map(x, x)", [1]),
        ("'[1].map(x, [1].map(y, [1].map(z, z)))' == ''", False),
    ],
)
def test_a_comprehension_gives_json(text: str, result: object) -> None:
    assert evaluate(text) == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("event.labels.map(x, default(x.by.id, 0))", [1, 0, 0]),
        ("event.labels.map(x, default(x['by'].id, default(event.gone, x.name)))", [1, "p1", "x"]),
        ("event.labels.map(x, default(event.gone, 'f'))", ["f", "f", "f"]),
        ("event.prices.map(x, default(x.of, 0))", [0, 0, "3"]),
        ("[[1], []].map(x, default(x[0], 7))", [1, 7]),
        ("[null, 1].map(x, default(x, 7))", [7, 1]),
        ("default(event.labels.map(x, x.gone), 'none')", "none"),
        ("['1', ' 2.5 ', 3].map(x, num(x) + num('1'))", [2, 3.5, 4]),
        ("event.labels.map(x, num(default(x.by.id, num('9'))))", [1, 9, 9]),
        ("[1].map(x, default(event.gone, [2].map(y, y)))", [[2]]),
        ("['ä'].map(x, default({'ä': {'€': x}}['ä']['€'], 1)) == []", None),
    ],
)
def test_default_and_num_know_its_variable(text: str, result: object) -> None:
    if result is None:
        with pytest.raises(ExpressionError, match="takes a path"):
            evaluate(text)
    else:
        assert evaluate(text) == result


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("[1].map(x, [1].map(y, [1].map(z, z)))", 26, "more than 2 comprehensions"),
        ("[1].all(x, [1].exists(y, [1].filter(z, z > 1) == []))", 29, "more than 2"),
        ("default([1].map(x, [1].map(y, [1].map(z, z))), 1)", 34, "more than 2"),
        ("[1].map(1, 2)", 4, "called as list.map"),
        ("[1].map(a.b, 2)", 4, "called as list.map"),
        ("map(x, y)", 0, "called as list.map"),
        ("[1].map()", 4, "called as list.map"),
        ("[1].map(", 4, "called as list.map"),
        ("[1].map(__is_there, 1)", 8, "begin with __"),
        ("[1].map(x, default(size(x), 1))", 11, "takes a path"),
        ("[1].map(x, default(x.a + 1, 1))", 11, "takes a path"),
        ("[1].map(x, num(x, 1))", 11, "num() takes 1 value"),
        ("[1].map(x, dance(x))", 11, "no function"),
        ("[1].transformList(i, v, v)", 4, "no function"),
    ],
)
def test_what_is_refused_before_it_runs(text: str, position: int, message: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        Expression.parse(text)
    assert refused.value.position == position and message in refused.value.message


@pytest.mark.parametrize("text", ["1.map(x, x)", "'a'.map(x, x)", "event.o.k.all(x, x)"])
def test_what_is_no_list_has_no_result(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)


def test_a_missing_member_of_its_variable_is_a_missing_value() -> None:
    with pytest.raises(MissingValue, match="there is no by"):
        evaluate("event.labels.map(x, x.by)")


def test_a_number_it_cannot_read_is_not_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExpressionError, match=r"num\(\) cannot take") as failed:
        evaluate("['s3cr3t'].map(x, num(x))")
    printed = capfd.readouterr()
    assert "s3cr3t" not in repr(failed.value) + printed.out + printed.err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("event.labels.map(x, x.name)", None),
        ("event.labels.map(x, y.name)", "nothing is called y; there is event"),
        ("x.labels.map(x, x.name)", "nothing is called x; there is event"),
        ("event.labels.map(x, x.name) == x", "nothing is called x; there is event"),
        ("[1].map(event, event.gone)", None),
        ("[1].map(x, event.gone)", "event has no gone; it has labels"),
    ],
)
def test_its_variable_is_known_inside_it_alone(text: str, problem: str | None) -> None:
    assert Expression.parse(text).problem({"event": ["labels"]}) == problem
