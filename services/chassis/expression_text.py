"""What an expression may hold, seen in its text alone: its syntax and its limits."""

import math
import re
from typing import Final

import cel

from services.chassis.expression_tokens import (
    CLOSE,
    OPEN,
    ExpressionError,
    Token,
    neighbours,
    tokens,
)

LONGEST_TEXT: Final = 4096
"""Bytes of one expression."""
DEEPEST: Final = 32
"""Brackets inside brackets."""
MOST_ADDITIONS: Final = 32
"""Joining n long texts copies n² / 2 of them."""
MOST_MATCHES: Final = 4
LONGEST_PATTERN: Final = 256
MOST_REPEATS: Final = 64
"""What the counts in one pattern may multiply to."""

FUNCTIONS: Final = frozenset(
    [
        "contains",
        "default",
        "double",
        "duration",
        "dyn",
        "endsWith",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getFullYear",
        "getHours",
        "getMilliseconds",
        "getMinutes",
        "getMonth",
        "getSeconds",
        "int",
        "matches",
        "num",
        "size",
        "startsWith",
        "string",
        "timestamp",
        "type",
        "uint",
    ]
)


def check(text: str) -> list[Token]:
    """The tokens of an expression that keeps every limit. Raises ExpressionError for any other."""
    if len(text.encode(errors="replace")) > LONGEST_TEXT:
        raise ExpressionError(f"an expression has at most {LONGEST_TEXT} bytes")
    words = list(tokens(text))
    _check_depth(words)
    _check_words(words)
    _check_matches(words)
    return words


def check_functions(text: str, program: cel.Program) -> None:
    """Raise ExpressionError for a function that there is not."""
    for name in program.functions():
        if re.fullmatch(r"\w+", name) and name not in FUNCTIONS:
            raise ExpressionError(f"no function is called {name}", text.find(name))


_SYNTAX: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.{1,200})")


def compile_text(text: str) -> cel.Program:
    """The program. Raises ExpressionError with the place of the fault."""
    try:
        return cel.compile(text)
    except ValueError as error:
        found = _SYNTAX.search(str(error))
        if found is None:
            raise ExpressionError("it cannot be read") from None
        line, column = int(found[1]), int(found[2])
        before = sum(len(each) + 1 for each in text.split("\n")[: line - 1])
        raise ExpressionError(found[3].split(" expecting ")[0], before + column - 1) from None


def _check_depth(words: list[Token]) -> None:
    depth = 0
    for token in words:
        if token.kind == "mark":
            depth += (token.text in OPEN) - (token.text in CLOSE)
        if depth > DEEPEST:
            raise ExpressionError(f"more than {DEEPEST} brackets inside brackets", token.start)


def _check_words(words: list[Token]) -> None:
    if sum(token.text == "+" for token in words) > MOST_ADDITIONS:
        raise ExpressionError(f"more than {MOST_ADDITIONS} additions")
    for before, token, _ in neighbours(words):
        if token.kind == "word" and token.text.startswith("__") and before != ".":
            raise ExpressionError("names that begin with __ are not available", token.start)
    for begins, dot, word in zip([None, *words], words, words[1:], strict=False):
        bare = begins is None or (begins.kind == "mark" and begins.text not in CLOSE)
        if bare and dot.text == "." and word.kind == "word":
            raise ExpressionError("a name does not begin with a dot", dot.start)


def _check_matches(words: list[Token]) -> None:
    """Patterns take linear time in the text, times their own size: hold that to a constant."""
    places = [
        at
        for at, (_, token, after) in enumerate(neighbours(words))
        if token.kind == "word" and token.text == "matches" and after == "("
    ]
    if len(places) > MOST_MATCHES:
        raise ExpressionError(f"more than {MOST_MATCHES} calls of matches()")
    for at in places:
        call = words[at - 1 : at + 4]
        if at == 0 or len(call) < 5 or call[0].text != "." or call[4].text != ")":
            raise ExpressionError('matches() is called as text.matches("pattern")', words[at].start)
        _check_pattern(call[3])


def _check_pattern(token: Token) -> None:
    if token.kind != "quoted":
        raise ExpressionError("the pattern of matches() is a text as it stands", token.start)
    try:
        pattern = cel.compile(token.text).execute({})
        cel.compile(f'"".matches({token.text})').execute({})
    except (ValueError, RuntimeError, TypeError):
        raise ExpressionError("the pattern of matches() cannot be read", token.start) from None
    counts = re.findall(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}", pattern)
    repeats = math.prod(max(int(low or 1), int(high or 1), 1) for low, high in counts)
    if len(pattern) > LONGEST_PATTERN or repeats > MOST_REPEATS:
        raise ExpressionError(
            "the pattern of matches() is too long or repeats too much", token.start
        )
