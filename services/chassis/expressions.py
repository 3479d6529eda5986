"""Expressions in CEL, kept to what ends soon: for conditions, filters and `${…}` templates.

CEL as `common-expression-language` has it, with two functions of ours (`expression_functions`). An
expression with a comprehension is bounded by nothing but the process it runs in: whoever has one
from somebody else evaluates it by `chassis.evaluator`.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias

import cel

from services.chassis.comprehensions import comprehensions
from services.chassis.expression_functions import Call, MissingValue, Rewriting, during, number
from services.chassis.expression_paths import Path, narrowed, paths
from services.chassis.expression_text import check, check_functions, compile_text
from services.chassis.expression_tokens import ExpressionError, Token
from services.chassis.strict_json import whole_number

__all__ = [
    "LARGEST_RESULT",
    "Expression",
    "ExpressionError",
    "Json",
    "MissingValue",
    "Names",
    "Scope",
    "plain",
]

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
Names: TypeAlias = Mapping[str, Collection[str] | None]
"""The variables there are, each with the members it may have; None: any."""

LARGEST_RESULT: Final = 2**20
"""Bytes of one result as JSON."""
_CACHED: Final = 2048


class Scope:
    """What expressions see; made once for all the expressions of one moment."""

    __slots__ = ("context",)

    def __init__(self, values: Mapping[str, object]) -> None:
        try:
            self.context = cel.Context(variables=dict(values))
        except (ValueError, TypeError, OverflowError):
            # Half a surrogate pair is JSON, yet no text.
            self.context = cel.Context(variables=_writable(dict(values)))


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression, compiled."""

    text: str
    program: cel.Program = field(repr=False)
    calls: Mapping[str, "_Call"] = field(repr=False)
    paths: frozenset[Path] = field(repr=False)
    looks: int | None = field(repr=False)
    """How often it goes through what it takes; None where nothing bounds that."""

    @staticmethod
    def parse(text: str) -> "Expression":
        """The expression in `text`. Raises ExpressionError for one that is wrong or too much."""
        return _parse(text)

    def problem(self, names: Names) -> str | None:
        """What the expression names that is not there, or None."""
        for variable, *members in sorted(self.paths):
            if variable not in names:
                return f"nothing is called {variable}; there is {', '.join(sorted(names))}"
            known = names[variable]
            if known is not None and members and members[0] not in known:
                has = ", ".join(sorted(known)) or "nothing"
                return f"{variable} has no {members[0]}; it has {has}"
        return None

    def evaluate(self, context: Mapping[str, object] | Scope) -> Json:
        """The result as JSON; times and durations as text. Raises ExpressionError."""
        result = plain(self.value(self._scope(context)))
        if isinstance(result, str | list | dict) and _size(result) > LARGEST_RESULT:
            raise ExpressionError(f"the result is longer than {LARGEST_RESULT} bytes")
        return result

    def holds(self, context: Mapping[str, object] | Scope) -> bool:
        """Whether it is true. Raises ExpressionError when it has no result or another kind."""
        result = self.value(self._scope(context))
        if not isinstance(result, bool):
            raise ExpressionError("a condition must be true or false")
        return result

    def value(self, scope: Scope) -> Any:
        """The result as the CEL library has it. Raises ExpressionError."""
        failed: dict[str, ExpressionError] = {}
        for name, function in during.items() if self.looks is None else ():
            scope.context.add_function(name, function)
        for name, call in self.calls.items():
            try:
                scope.context.add_variable(name, call.answer(scope))
            except ExpressionError as error:
                # Left undefined: it counts only if CEL comes to it.
                failed[name] = error
        try:
            return self.program.execute(scope.context)
        except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise self._told(error, failed) from None

    def _scope(self, context: Mapping[str, object] | Scope) -> Scope:
        if isinstance(context, Scope):
            return context
        return Scope(narrowed(context, self.paths))

    def _told(self, error: Exception, failed: Mapping[str, ExpressionError]) -> ExpressionError:
        said = str(error.args[0]) if error.args else ""
        undefined = _UNDEFINED.match(said)
        if undefined:
            return failed.get(undefined[1]) or ExpressionError(f"nothing is called {undefined[1]}")
        if isinstance(error, KeyError):
            # A key that was itself a value is not repeated.
            return MissingValue(f"there is no {said if said and said in self.text else 'such key'}")
        if isinstance(error, IndexError):
            return MissingValue("there is no such position in the list")
        if isinstance(error, TypeError) and set(self.program.functions()) <= {"_[_]"}:
            return MissingValue("there is nothing below a value that is no object")
        return ExpressionError(_wording(error, said))


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is answered here: its function and its arguments."""

    function: str
    arguments: tuple[Expression, ...]

    def answer(self, scope: Scope) -> Any:
        return _ANSWERS[self.function](scope, *self.arguments)


def _default(scope: Scope, value: Expression, fallback: Expression) -> Any:
    try:
        found = value.value(scope)
    except MissingValue:
        found = None
    return fallback.value(scope) if found is None else found


def _num(scope: Scope, value: Expression) -> float:
    return number(value.value(scope))


_ANSWERS: Final[Mapping[str, Callable[..., Any]]] = {"default": _default, "num": _num}

_UNDEFINED: Final = re.compile(r"Undefined variable or function: '(\w+)'")
_OVERLOAD: Final = re.compile(r"Unsupported operation: (\w+ \S{1,2} \w+)\.")
_FUNCTION: Final = re.compile(r"Function '_*(\w+)' error")


def _wording(error: Exception, said: str) -> str:
    """What CEL means, without the values that its own words may hold."""
    if found := _OVERLOAD.match(said):
        return f"{found[1]} does not go together; convert with num() or string()"
    if found := _FUNCTION.match(said):
        return f"{found[1]}() cannot take that value"
    if isinstance(error, ArithmeticError):
        return "the arithmetic overflows or divides by zero"
    if isinstance(error, TypeError):
        return "the types do not go together; convert with num() or string()"
    return "it has no result"


@lru_cache(maxsize=_CACHED)
def _parse(text: str) -> Expression:
    words = check(text)
    bound = comprehensions(words)
    whole = compile_text(text)
    check_functions(text, whole)
    rewritten, found = Rewriting(text, words, bound).rewritten()
    calls = {name: _answered(call) for name, call in found.items()}
    program = compile_text(rewritten) if rewritten != text else whole
    taken = paths(words, whole.variables(), bound)
    looks = None if bound else _looks(words, taken)
    return Expression(text, program, calls, frozenset(taken), looks)


def _answered(call: Call) -> _Call:
    return _Call(call.function, tuple(map(_parse, call.arguments)))


def _looks(words: list[Token], taken: Sequence[Path]) -> int:
    """CEL copies what it takes each time it is named, and both sides of an addition."""
    return len(taken) + sum(token.text == "+" for token in words)


def plain(value: Any) -> Json:
    """A CEL value as JSON; a whole double as an integer, as RFC 8785 writes it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.9f}".rstrip("0").rstrip(".") + "s"
    raise ExpressionError("the result is not one that JSON can hold")


def _number(value: float) -> Json:
    if not math.isfinite(value):
        raise ExpressionError("the result is not a number")
    return whole_number(value)


def _size(value: Json) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _writable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_writable(each) for each in value]
    if isinstance(value, dict):
        return {_writable(key): _writable(each) for key, each in value.items()}
    return value
