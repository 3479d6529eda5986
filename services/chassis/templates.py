"""Templates: text with `${expression}` in it, alone or anywhere inside a JSON value.

`${…}` alone keeps the type of its result. Beside other text a result is written into it: texts as
they are, all else as compact JSON; null there is an error. `$${` stands for `${` itself.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from services.chassis.expression_tokens import tokens
from services.chassis.expressions import (
    LARGEST_RESULT,
    Expression,
    ExpressionError,
    Json,
    Names,
    Scope,
)

_OPENING: Final = re.compile(r"\$?\$\{")
_CACHED: Final = 2048


@dataclass(frozen=True, slots=True)
class Template:
    """Texts and expressions in the order in which they stand."""

    parts: tuple[str | Expression, ...]

    @staticmethod
    def parse(text: str) -> "Template":
        """The template in `text`. Raises ExpressionError."""
        return _parse(text)

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The expressions in it."""
        return tuple(part for part in self.parts if isinstance(part, Expression))

    def render(self, scope: Scope) -> Json:
        """What it comes to. Raises ExpressionError."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Expression):
            return self.parts[0].evaluate(scope)
        text = "".join(
            part if isinstance(part, str) else as_text(part.evaluate(scope)) for part in self.parts
        )
        if len(text) > LARGEST_RESULT:
            raise ExpressionError(f"the text is longer than {LARGEST_RESULT} characters")
        return text


def as_text(value: Json) -> str:
    """A value as it stands inside a text. Raises ExpressionError for null."""
    if value is None:
        raise ExpressionError("null cannot stand inside a text; give it a default()")
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def render(value: Json, scope: Scope, path: str = "") -> Json:
    """`value` with every text in it rendered, keys excepted.

    Raises ExpressionError, which says where below `path` the fault is (`.items[0].name`).
    """
    if isinstance(value, str):
        return _rendered(value, scope, path)
    if isinstance(value, list):
        return [render(each, scope, f"{path}[{at}]") for at, each in enumerate(value)]
    if isinstance(value, dict):
        return {key: render(each, scope, f"{path}.{key}") for key, each in value.items()}
    return value


def _rendered(text: str, scope: Scope, path: str) -> Json:
    try:
        return Template.parse(text).render(scope)
    except ExpressionError as error:
        where = f"{path.removeprefix('.')}: " if path else ""
        raise type(error)(where + error.message, error.position) from None


def expressions(value: Json) -> Iterator[Expression]:
    """Every expression in the templates in `value`. Raises ExpressionError."""
    if isinstance(value, str):
        yield from Template.parse(value).expressions
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from expressions(each)


def problems(value: Json, names: Names, path: str = "") -> list[tuple[str, str]]:
    """Everything wrong with the templates in `value`: where (`.items[0].name`), and what."""
    if isinstance(value, str):
        return [(path, message) for message in _problems_of(value, names)]
    if isinstance(value, list):
        parts = [(f"{path}[{at}]", each) for at, each in enumerate(value)]
    elif isinstance(value, dict):
        parts = [(f"{path}.{key}", each) for key, each in value.items()]
    else:
        return []
    return [found for place, each in parts for found in problems(each, names, place)]


def _problems_of(text: str, names: Names) -> Iterator[str]:
    try:
        template = Template.parse(text)
    except ExpressionError as error:
        yield error.message
        return
    for expression in template.expressions:
        if problem := expression.problem(names):
            yield problem


@lru_cache(maxsize=_CACHED)
def _parse(text: str) -> Template:
    parts: list[str | Expression] = []
    done = 0
    while found := _OPENING.search(text, done):
        parts.append(text[done : found.start()])
        done = found.end()
        if found[0] == "$${":
            parts.append("${")
            continue
        end = _closing(text, done)
        parts.append(_expression(text[done:end], done))
        done = end + 1
    parts.append(text[done:])
    return Template(tuple(part for part in parts if part != "") or ("",))


def _closing(text: str, start: int) -> int:
    """The offset of the `}` that ends the expression beginning at `start`."""
    depth = 0
    for token in tokens(text, start):
        if token.text == "}" and depth == 0:
            return token.start
        depth += (token.text == "{") - (token.text == "}")
    raise ExpressionError("${ without its }", start)


def _expression(text: str, offset: int) -> Expression:
    try:
        return Expression.parse(text)
    except ExpressionError as error:
        position = None if error.position is None else error.position + offset
        raise ExpressionError(error.message, position) from None
