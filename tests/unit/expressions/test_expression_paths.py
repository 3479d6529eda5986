"""What an expression takes of its values, and that the rest makes no difference."""

from typing import Any

import pytest

from services.chassis.expression_paths import narrowed
from services.chassis.expressions import Expression, ExpressionError

VALUES: dict[str, Any] = {
    "event": {"type": "t", "payload": {"a": {"b": 1, "c": 2}, "l": [{"d": 1}], "n": None}},
    "steps": {"one": {"body": "large"}, "two": {"status": 200}},
}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("1 + 1", {}),
        ("gone.x", {}),
        ("event.payload.a.b", {"event": {"payload": {"a": {"b": 1}}}}),
        ("event['payload'].a['b'] == 1", {"event": {"payload": {"a": {"b": 1}}}}),
        ("has(event.payload.a.x)", {"event": {"payload": {"a": {}}}}),
        ("event.payload.l[0].d", {"event": {"payload": {"l": [{"d": 1}]}}}),
        ("event.payload.l.d", {"event": {"payload": {"l": [{"d": 1}]}}}),
        ("event.payload.n.d", {"event": {"payload": {"n": None}}}),
        ("event.payload.l.size()", {"event": {"payload": {"l": [{"d": 1}]}}}),
        ("event.payload.l.map(x, x.d)", {"event": {"payload": {"l": [{"d": 1}]}}}),
        ("[1].map(event, event.type)", {}),
        ("event.payload.a.b + event.payload.a.c", {"event": {"payload": {"a": {"b": 1, "c": 2}}}}),
        ("event.payload.a.size() + event.payload.a.b", {"event": {"payload": {"a": VALUES["event"]["payload"]["a"]}}}),
        ("default(steps.one.x, event.type)", {"steps": {"one": {}}, "event": {"type": "t"}}),
        ("steps['o' + 'ne'].body", {"steps": VALUES["steps"]}),
        ("steps[event.type]", {"steps": VALUES["steps"], "event": {"type": "t"}}),
        ("size(steps) > 1 && steps.two.status == 200", {"steps": VALUES["steps"]}),
        ("{'a': event.type}.a", {"event": {"type": "t"}}),
        ("event.?payload", None),
    ],
)  # fmt: skip
def test_an_expression_gets_what_it_names(text: str, taken: dict[str, Any] | None) -> None:
    if taken is None:
        with pytest.raises(ExpressionError):
            Expression.parse(text)
        return
    expression = Expression.parse(text)
    assert narrowed(VALUES, expression.paths) == taken
    assert _outcome(expression, taken) == _outcome(expression, VALUES)


def _outcome(expression: Expression, values: dict[str, Any]) -> object:
    try:
        return expression.evaluate(values)
    except ExpressionError as error:
        return type(error), error.message
