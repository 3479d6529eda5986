"""Expressions in CEL, kept to what ends soon: for conditions, filters and `${…}` templates.

CEL as `common-expression-language` has it, without comprehensions (`all`, `exists`, `exists_one`,
`map`, `filter`), whose time nothing bounds, and with two functions of ours:

    default(value, fallback)   the fallback where the value is missing or null
    num(value)                 a number, or a text that holds one, as a double

Both are answered here before CEL runs: its library would look up every argument first, and prints
what a Python function raises, values included.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias

import cel

from services.chassis.expression_text import (
    OPEN,
    ExpressionError,
    Token,
    check,
    check_functions,
    compile_text,
    neighbours,
    selected,
)
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


class MissingValue(ExpressionError):
    """A result that needs something which is not there."""

    reason = "VALUE_MISSING"


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
    selected: frozenset[tuple[str, str | None]] = field(repr=False)

    @staticmethod
    def parse(text: str) -> "Expression":
        """The expression in `text`. Raises ExpressionError for one that is wrong or too much."""
        return _parse(text)

    def problem(self, names: Names) -> str | None:
        """What the expression names that is not there, or None."""
        for variable, member in sorted(self.selected, key=str):
            if variable not in names:
                return f"nothing is called {variable}; there is {', '.join(sorted(names))}"
            known = names[variable]
            if known is not None and member is not None and member not in known:
                return f"{variable} has no {member}; it has {', '.join(sorted(known)) or 'nothing'}"
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
        return Scope({name: context[name] for name, _ in self.selected if name in context})

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
    found = value.value(scope)
    if found is None:
        raise MissingValue("num() has no value to read")
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if number or (isinstance(found, str) and _NUMBER.fullmatch(found.strip())):
        return float(found)
    raise ExpressionError("num() takes a number or a text that holds one")


_ANSWERS: Final[Mapping[str, Callable[..., Any]]] = {"default": _default, "num": _num}
_ARITY: Final = {"default": 2, "num": 1}
_NUMBER: Final = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3})?")

_UNDEFINED: Final = re.compile(r"Undefined variable or function: '(\w+)'")
_OVERLOAD: Final = re.compile(r"Unsupported operation: (\w+ \S{1,2} \w+)\.")
_FUNCTION: Final = re.compile(r"Function '(\w+)' error")


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
    whole = compile_text(text)
    check_functions(text, whole)
    rewritten, calls = _answered_here(text, words)
    program = compile_text(rewritten) if calls else whole
    return Expression(text, program, calls, selected(words, whole))


_numbers: Final = itertools.count()


def _answered_here(text: str, words: list[Token]) -> tuple[str, dict[str, _Call]]:
    """The text with a name in place of each call that is answered here, and those calls."""
    pieces: list[str] = []
    calls: dict[str, _Call] = {}
    done = 0
    for at, (before, token, after) in enumerate(neighbours(words)):
        if token.start < done or token.text not in _ANSWERS or after != "(" or before == ".":
            continue
        name = f"__call_{next(_numbers)}"
        arguments, end = _arguments(text, words, at)
        calls[name] = _Call(token.text, arguments)
        pieces += [text[done : token.start], name]
        done = end
    return "".join((*pieces, text[done:])), calls


def _arguments(text: str, words: list[Token], at: int) -> tuple[tuple[Expression, ...], int]:
    """The arguments of the call whose name is token `at`, and the offset behind the call."""
    depth, starts, ends = 0, [words[at + 1].end], list[int]()
    for token in words[at + 1 :]:
        if token.kind == "mark":
            depth += (token.text in OPEN) - (token.text in OPEN.values())
            if depth == 0 or (depth == 1 and token.text == ","):
                ends.append(token.start)
                starts.append(token.end)
        if depth == 0:
            break
    spans = [(s, e) for s, e in zip(starts, ends, strict=False) if text[s:e].strip()]
    function = words[at].text
    if len(spans) != _ARITY[function]:
        message = f"{function}() takes {_ARITY[function]} value{'s' * (_ARITY[function] > 1)}"
        raise ExpressionError(message, words[at].start)
    return tuple(_parse(text[s:e]) for s, e in spans), starts[-1]


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
