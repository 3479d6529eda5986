"""JSONPath: one value or all of them, and no path whose time nothing bounds."""

import json
import time

import pytest

from services.chassis.expressions import Json
from services.chassis.jsonpath import JsonPath, JsonPathError

ANSWER: Json = {"a": {"b": 1, "n": None}, "l": [{"x": 1, "y": "p"}, {"x": 2}], "..": "dots"}


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("$.a.b", 1),
        ("$", ANSWER),
        ("$.a.n", None),
        ("$.gone.further", None),
        ("$.l[-1].x", 2),
        ("$.l[*].x", [1, 2]),
        ("$.l[?@.x > 1].x", [2]),
        ("$..x", [1, 2]),
        ("$.gone[*]", []),
        ("$['..']", "dots"),
        ("$['a','l'][0]", [{"x": 1, "y": "p"}]),
    ],
)
def test_a_path_takes_its_values(path: str, result: Json) -> None:
    assert JsonPath.parse(path).extract(ANSWER) == result


@pytest.mark.parametrize(
    "path",
    [
        "a.b",
        "$.a[",
        "$..a..b",
        "$[?@.a == $.b]",
        "$[?@.a][?@.b]",
        "$[?match(@.a, 'b')]",
        "$[?search(@.a, 'b')]",
        "$[*,*,*,*,*,*]",
        "$." + "a" * 1024,
        "",
    ],
)
def test_a_path_that_does_too_much_is_refused(path: str) -> None:
    with pytest.raises(JsonPathError):
        JsonPath.parse(path)


def test_what_may_run_ends_soon() -> None:
    answer = [{"id": n, "user": {"login": "u", "tags": [1, 2]}} for n in range(5000)]
    began = time.monotonic()
    for path in ("$..tags[?@ > 1]", "$[*][*,*,*,*,*]", "$[?@..login]"):
        JsonPath.parse(path).extract(json.loads(json.dumps(answer)))
    assert time.monotonic() - began < 5


def test_a_deep_answer_is_no_crash() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(JsonPathError):
        JsonPath.parse("$..x").extract(deep)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("$.l[*].x", {"a": {"b": 1}, "l": [{"x": "-", "y": {"x": 2}}, {"x": "-"}]}),
        ("$..x", {"a": {"b": 1}, "l": [{"x": "-", "y": {"x": "-"}}, {"x": "-"}]}),
        ("$..[*]", {"a": "-", "l": "-"}),
        ("$.gone.further", {"a": {"b": 1}, "l": [{"x": 1, "y": {"x": 2}}, {"x": 3}]}),
        ("$", "-"),
    ],
)
def test_what_a_path_points_at_is_masked_and_nothing_else(path: str, left: Json) -> None:
    value: Json = {"a": {"b": 1}, "l": [{"x": 1, "y": {"x": 2}}, {"x": 3}]}
    assert JsonPath.of_place(path).masked(value, "-") == left


def test_a_path_of_places_has_no_filter() -> None:
    assert JsonPath.of_place("$['why?'].x").singular
    with pytest.raises(JsonPathError, match="filter"):
        JsonPath.of_place("$.l[?@.x > 1].x")
    with pytest.raises(JsonPathError):
        JsonPath.of_place("user.email")
