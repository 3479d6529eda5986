"""The two functions of ours that CEL does not have.

    default(value, fallback)   the fallback where the value is missing or null
    num(value)                 a number, or a text that holds one, as a double

They are answered before CEL runs: its library would look up every argument first, and a missing one
would end the whole. A comprehension's variable has a value only while CEL runs: what depends on one
is written out as a call of the functions that `during` has.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.chassis.comprehensions import Comprehension
from services.chassis.expression_tokens import CLOSE, OPEN, ExpressionError, Token, neighbours

ARITY: Final = {"default": 2, "num": 1}
_NUMBER: Final = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3})?")
_STEP: Final = re.compile(r"\.(?P<name>\w+)|\[(?P<quoted>'[^'\\]*'|\"[^\"\\]*\")\]|\[(?P<at>\d+)\]")
_numbers: Final = itertools.count()


class MissingValue(ExpressionError):
    """A result that needs something which is not there."""

    reason = "VALUE_MISSING"


@dataclass(frozen=True, slots=True)
class Call:
    """A call to answer before CEL runs: its function, and the texts of its arguments."""

    function: str
    arguments: tuple[str, ...]


def number(value: Any) -> float:
    """What num() gives. Raises ExpressionError, which does not repeat the value."""
    if value is None:
        raise MissingValue("num() has no value to read")
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if plain or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        return float(value)
    raise ExpressionError("num() takes a number or a text that holds one")


def _is_there(value: Any, path: Sequence[Any]) -> bool:
    """Whether there is something below the value that is not null."""
    for step in path:
        known = range(len(value)) if isinstance(value, list) else value
        if not isinstance(value, list | dict) or step not in known:
            return False
        value = value[step]
    return value is not None


during: Final[Mapping[str, Callable[..., Any]]] = {"__is_there": _is_there, "__num": number}
"""The functions CEL itself calls, under names that no expression can have."""


@dataclass(frozen=True, slots=True)
class Rewriting:
    """An expression's text and tokens, to be written anew without default() and num()."""

    text: str
    words: list[Token]
    bound: Sequence[Comprehension]

    def rewritten(self) -> tuple[str, dict[str, Call]]:
        """The text with a name in place of each call to answer first, and those calls.

        Raises ExpressionError for a call that is wrong.
        """
        calls: dict[str, Call] = {}
        return self._between(0, len(self.text), calls), calls

    def _between(self, start: int, end: int, calls: dict[str, Call]) -> str:
        pieces: list[str] = []
        for at, (before, token, after) in enumerate(neighbours(self.words)):
            inside = start <= token.start < end
            if not inside or token.text not in ARITY or after != "(" or before == ".":
                continue
            arguments, behind = self._arguments(at)
            pieces += [self.text[start : token.start], self._instead(at, arguments, behind, calls)]
            start = behind
        return "".join((*pieces, self.text[start:end]))

    def _instead(self, at: int, arguments: list[slice], behind: int, calls: dict[str, Call]) -> str:
        """What to write for the call at token `at`."""
        if not self._depends(at, behind):
            name = f"__call_{next(_numbers)}"
            calls[name] = Call(self.words[at].text, tuple(self.text[each] for each in arguments))
            return name
        written = [self._between(each.start, each.stop, calls) for each in arguments]
        if self.words[at].text == "num":
            return f"__num({written[0]})"
        root, path = self._path(at, arguments[0])
        there = f"__is_there({root}, {json.dumps(path, ensure_ascii=False)})"
        return f"({there} ? {written[0]} : {written[1]})"

    def _depends(self, at: int, behind: int) -> bool:
        """Whether the call at token `at` names the variable of a comprehension around it."""
        around = {one.variable for one in self.bound if one.holds(at)}
        inside = (each for each in neighbours(self.words[at:]) if each[1].start < behind)
        return any(token.text in around and before != "." for before, token, _ in inside)

    def _path(self, at: int, argument: slice) -> tuple[str, list[str | int]]:
        """The variable and the steps in `x.a["b"][0]`."""
        tokens = [one for one in self.words if argument.start <= one.start < argument.stop]
        root, *steps = (one.text for one in tokens)
        rest, path, done = "".join(steps), list[str | int](), 0
        while step := _STEP.match(rest, done):
            name = step["name"] or (step["quoted"] or "")[1:-1]
            path.append(int(step["at"]) if step["at"] else name)
            done = step.end()
        if tokens[0].kind != "word" or done < len(rest):
            message = "default() of a comprehension's variable takes a path, such as x.a.b"
            raise ExpressionError(message, self.words[at].start)
        return root, path

    def _arguments(self, at: int) -> tuple[list[slice], int]:
        """Where the arguments of the call at token `at` stand, and the offset behind the call."""
        depth, starts, ends = 0, [self.words[at + 1].end], list[int]()
        for token in self.words[at + 1 :]:
            if token.kind == "mark":
                depth += (token.text in OPEN) - (token.text in CLOSE)
                if depth == 0 or (depth == 1 and token.text == ","):
                    ends.append(token.start)
                    starts.append(token.end)
            if depth == 0:
                break
        spans = [slice(s, e) for s, e in zip(starts, ends, strict=False) if self.text[s:e].strip()]
        function, wanted = self.words[at].text, ARITY[self.words[at].text]
        if len(spans) != wanted:
            message = f"{function}() takes {wanted} value{'s' * (wanted > 1)}"
            raise ExpressionError(message, self.words[at].start)
        return spans, starts[-1]
