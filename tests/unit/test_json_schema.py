"""JSON Schema as far as we check it: the same verdicts as another implementation, and no values."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.json_schema import DEEPEST, LARGEST, faults, problems

oracle = pytest.importorskip("jsonschema", reason="comes with moto").Draft202012Validator

NAMES = st.sampled_from(["a", "b", "c-d", "e f", "ä"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, 1.5, -2.5, 1e300]),
    st.sampled_from(["", "a", "ab", "äöü", "\U0001f600"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
TYPES = st.sampled_from(["null", "boolean", "object", "array", "string", "number", "integer"])
NUMBERS = st.sampled_from([-1, 0, 1, 1.5])
COUNTS = st.sampled_from([0, 1, 2, 2.0])
FLAT: dict[str, st.SearchStrategy[Any]] = {
    "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
    "enum": st.lists(SCALARS, max_size=3),
    "const": VALUES,
    "minimum": NUMBERS,
    "maximum": NUMBERS,
    "minLength": COUNTS,
    "maxLength": COUNTS,
    "minItems": COUNTS,
    "maxItems": COUNTS,
    "required": st.lists(NAMES, max_size=2, unique=True),
    "format": st.just("email"),
    "title": st.just("t"),
}


def _schema(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    deep = {
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "additionalProperties": inner,
        "items": inner,
    }
    return st.fixed_dictionaries({}, optional={**FLAT, **deep})


SCHEMAS = st.recursive(st.booleans(), _schema, max_leaves=4)
DECLARED = _schema(SCHEMAS)


@given(DECLARED, VALUES)
def test_a_value_has_faults_exactly_where_another_implementation_says_so(
    schema: dict[str, Any], value: Any
) -> None:
    assert list(problems(schema)) == []
    ours, theirs = list(faults(schema, value)), list(oracle(schema).iter_errors(value))
    assert bool(ours) == bool(theirs), (ours, theirs)


@given(DECLARED, VALUES)
def test_a_fault_says_where_and_never_what(schema: dict[str, Any], value: Any) -> None:
    marked = _marked(value)
    for path, sentence in faults(schema, marked, "payload"):
        assert path.startswith("payload")
        assert "SECRET" not in path + sentence and "ä" not in path


def _marked(value: Any) -> Any:
    """The value with texts that must not be told; a key that is no plain word is one as well."""
    if isinstance(value, dict):
        return {name: _marked(each) for name, each in value.items()} | {"SECRET @": 1}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    return f"SECRET {value}" if isinstance(value, str) else value


@given(
    DECLARED,
    st.sampled_from(["$ref", "pattern", "anyOf", "if", "not", "uniqueItems", "requird"]),
    st.lists(st.sampled_from(["items", "additionalProperties", "properties"]), max_size=4),
)
def test_what_cannot_be_checked_is_refused_at_its_place(
    schema: dict[str, Any], keyword: str, above: list[str]
) -> None:
    wrong: Any = {**schema, keyword: "x"}
    path = f".{keyword}"
    for each in above:
        named = each == "properties"
        wrong = {each: {"p": wrong} if named else wrong}
        path = f".{each}.p{path}" if named else f".{each}{path}"
    (found,) = problems(wrong)
    assert found[0] == path and keyword in found[1]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ([], ""),
        ({"type": "text"}, ".type"),
        ({"type": []}, ".type"),
        ({"required": "a"}, ".required"),
        ({"required": [1]}, ".required"),
        ({"enum": "a"}, ".enum"),
        ({"enum": [1] * 101}, ".enum"),
        # Held against each place of a payload, these would take whoever checks it seconds.
        ({"enum": [1, [2]]}, ".enum"),
        ({"items": {"enum": [{}]}}, ".items.enum"),
        ({"minimum": True}, ".minimum"),
        ({"maxLength": -1}, ".maxLength"),
        ({"maxItems": 1.5}, ".maxItems"),
        ({"properties": []}, ".properties"),
        ({"properties": {"x": 7}}, ".properties.x"),
        ({"items": [{}]}, ".items"),
        ({"description": "x" * LARGEST}, ""),
    ],
)
def test_a_schema_that_is_wrong_says_where(schema: Any, path: str) -> None:
    assert [where for where, _ in problems(schema)] == [path]


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {"type": "array"}
    for _ in range(DEEPEST - 1):
        schema = {"items": schema}
    assert list(problems(schema)) == []
    ((path, sentence),) = problems({"items": schema})
    assert path == ".items" * DEEPEST and str(DEEPEST) in sentence


def test_many_values_are_allowed_at_many_places_in_no_time() -> None:
    def taken(schema: Any) -> float:
        began = time.process_time()
        assert list(faults({"items": schema}, [1] * 20_000)) == []
        return time.process_time() - began

    # true is equal to 1 in Python, and in JSON it is another value.
    assert taken({"enum": [True] * 99 + [1]}) < 6 * taken({"type": "integer"})


@pytest.mark.parametrize(
    ("schema", "value", "path"),
    [
        ({"properties": {"x": {"type": "string"}}}, {"x": 1}, "p.x"),
        ({"required": ["x"]}, {}, "p.x"),
        ({"items": {"properties": {"x": {"minimum": 1}}}}, [{"x": 1}, {"x": 0}], "p[1].x"),
        ({"additionalProperties": False}, {"card": 1}, "p.card"),
        ({"additionalProperties": False}, {"ada@example.com": 1}, "p[*]"),
        ({"const": 1}, True, "p"),
    ],
)
def test_a_path_leads_to_the_fault(schema: Any, value: Any, path: str) -> None:
    assert [where for where, _ in faults(schema, value, "p")] == [path]
