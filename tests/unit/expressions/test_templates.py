"""Templates: types kept alone, text beside text, and every fault at once."""

import pytest

from services.chassis.expressions import ExpressionError, Json, Scope
from services.chassis.templates import Template, problems, render

SCOPE = Scope({"input": {"n": 7, "s": "x", "none": None, "o": {"b": 1, "a": [True]}}})


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("plain", "plain"),
        ("", ""),
        ("${input.n}", 7),
        ("${input.none}", None),
        ("${input.o}", {"a": [True], "b": 1}),
        ("no ${input.n}", "no 7"),
        ("${input.n}${input.n}", "77"),
        ("${input.s}-${input.o}", 'x-{"a":[true],"b":1}'),
        (" ${input.n}", " 7"),
        ("$${input.n}", "${input.n}"),
        ("$$${input.n}", "$${input.n}"),
        ("$5 and {x} and $", "$5 and {x} and $"),
        ("${ {'a': '}'}.a }", "}"),
        ("${'${'}", "${"),
        ("${input.n // }\n}", 7),
        (
            {"a": ["${input.n}", {"b": "${input.s}"}], "${input.n}": 1},
            {"a": [7, {"b": "x"}], "${input.n}": 1},
        ),
        (True, True),
        (None, None),
    ],
)
def test_a_template_renders(value: Json, result: Json) -> None:
    found = render(value, SCOPE)
    assert found == result and type(found) is type(result)


def test_an_object_in_a_text_has_its_names_in_order() -> None:
    names = [f"n{each:02}" for each in range(20)]
    scope = Scope({"input": dict.fromkeys(reversed(names), 1)})
    assert render("${input} ", scope) == "{" + ",".join(f'"{each}":1' for each in names) + "} "


def test_null_cannot_stand_inside_a_text() -> None:
    with pytest.raises(ExpressionError, match="null"):
        render("a ${input.none}", SCOPE)


def test_a_rendered_text_is_bounded() -> None:
    scope = Scope({"input": {"a": "x" * 600_000}})
    with pytest.raises(ExpressionError, match="longer"):
        render("${input.a}${input.a}", scope)


@pytest.mark.parametrize(
    ("text", "position"),
    [("${", 2), ("a ${input.n", 4), ("ab ${1 +} c", 8), ("${[1].map(1, x)}", 6), ("${}", 2)],
)
def test_a_fault_has_its_place_in_the_whole_text(text: str, position: int) -> None:
    with pytest.raises(ExpressionError) as refused:
        Template.parse(text)
    assert refused.value.position == position


def test_a_fault_says_where_in_the_value_it_is() -> None:
    with pytest.raises(ExpressionError, match=r"^a\[1\].b: there is no gone$"):
        render({"a": [1, {"b": "${input.gone}"}]}, SCOPE)
    with pytest.raises(ExpressionError, match=r"^there is no gone$"):
        render("${input.gone}", SCOPE)


def test_every_problem_is_found_with_its_path() -> None:
    value: Json = {
        "a": ["${evnt.x}", {"b": "${steps.two.output} ${steps.one}"}],
        "c": "${",
        "d": "${event.x}",
        "e": 1,
    }
    assert problems(value, {"event": None, "steps": ["one"]}) == [
        (".a[0]", "nothing is called evnt; there is event, steps"),
        (".a[1].b", "steps has no two; it has one"),
        (".c", "${ without its }"),
    ]
    assert problems("${", {}) == [("", "${ without its }")]
