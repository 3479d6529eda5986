"""The questions that expressions answer: one table, for this process and for those it may kill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.chassis import strict_json
from services.chassis.errors import InvalidArgument
from services.chassis.expressions import Expression, ExpressionError, Json, MissingValue, Scope
from services.chassis.jsonpath import JsonPath, JsonPathError
from services.chassis.templates import render


class NotJson(InvalidArgument):
    """Bytes to take values out of that are no JSON."""

    reason = "NOT_JSON"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question: values are read, which takes time by their size, and then answered.

    In a process of its own an answer may take `least_s` of processor time and `byte_s` more for
    each byte of values.
    """

    read: Callable[[bytes], Any]
    answer: Callable[[Any, Any], Json]
    least_s: float
    byte_s: float

    def limit_s(self, size: int) -> float:
        """The processor time for the answer to a question about so many bytes."""
        return self.least_s + size * self.byte_s


@dataclass(frozen=True, slots=True)
class Question:
    """A kind by its name, and what is asked: a text, a template, or paths by name."""

    kind: str
    asked: Any


def _scope(values: bytes) -> Scope:
    found = _json(values)
    assert isinstance(found, dict)  # noqa: S101 - written by our own evaluator
    return Scope(found)


def _json(body: bytes) -> Json:
    try:
        found: Any = strict_json.parse(body)
    except ValueError:
        raise NotJson("it is not JSON, so there is nothing to extract from") from None
    return found  # type: ignore[no-any-return]


def _extract(paths: Mapping[str, str], value: Json) -> Json:
    return {name: JsonPath.parse(path).extract(value) for name, path in paths.items()}


# A template may well pass a whole payload on, which takes 0.1 µs a byte.
EVALUATION: Final = (0.035, 1e-7)
# Paths are linear in what they go through, however they look: 0.3 µs a byte at worst.
EXTRACTION: Final = (0.035, 5e-7)

KINDS: Final[Mapping[str, Kind]] = {
    "holds": Kind(_scope, lambda text, scope: Expression.parse(text).holds(scope), *EVALUATION),
    "evaluate": Kind(
        _scope, lambda text, scope: Expression.parse(text).evaluate(scope), *EVALUATION
    ),
    "render": Kind(_scope, render, *EVALUATION),
    "extract": Kind(_json, _extract, *EXTRACTION),
}
REFUSALS: Final[Mapping[str, type[InvalidArgument]]] = {
    kind.reason: kind for kind in (ExpressionError, MissingValue, JsonPathError, NotJson)
}
"""What an answer may be instead, by reason."""
