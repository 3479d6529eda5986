"""What an expression may hold, seen in its text alone: its tokens, its syntax, its limits."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cel

from services.chassis.errors import InvalidArgument

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
MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})


class ExpressionError(InvalidArgument):
    """An expression that cannot be read or has no result; never repeats a value it was given.

    `position` is the offset of the fault in the text, in characters, where one is known.
    """

    reason = "EXPRESSION_INVALID"

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a number, a quoted text or a mark of an expression, and where it stands."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.start + len(self.text)


# As the grammar of CEL has them (cel-spec, doc/langdef.md, "Syntax").
_TOKEN: Final = re.compile(
    r"""(?s)(?P<space>[\t\n\f\r ]+|//[^\n]*)
    |(?P<quoted>[bB]?(?:
        [rR](?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n\r]*"|'[^'\n\r]*')
        |\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}
        |"(?:\\.|[^"\\\n\r])*"|'(?:\\.|[^'\\\n\r])*'))
    |(?P<number>0x[0-9a-fA-F]+[uU]?|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?[uU]?)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>[-+*/%!<>=&|?:.,(){}\[\]])""",
    re.VERBOSE,
)
_PLAIN_QUOTED: Final = re.compile(r"'[^'\\]+'|\"[^\"\\]+\"")
OPEN: Final = {"(": ")", "[": "]", "{": "}"}


def tokens(text: str, start: int = 0) -> Iterator[Token]:
    """The tokens from `start` on, without spaces and comments. Raises ExpressionError."""
    while start < len(text):
        found = _TOKEN.match(text, start)
        if found is None:
            raise ExpressionError("an unexpected character, or a text without its end", start)
        if found.lastgroup != "space":
            yield Token(str(found.lastgroup), found[0], start)
        start = found.end()


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
            depth += (token.text in OPEN) - (token.text in OPEN.values())
        if depth > DEEPEST:
            raise ExpressionError(f"more than {DEEPEST} brackets inside brackets", token.start)


def _check_words(words: list[Token]) -> None:
    if sum(token.text == "+" for token in words) > MOST_ADDITIONS:
        raise ExpressionError(f"more than {MOST_ADDITIONS} additions")
    for before, token, after in neighbours(words):
        if token.kind != "word":
            continue
        if token.text in MACROS and after == "(":
            raise ExpressionError(f"{token.text}() is not available here", token.start)
        if token.text.startswith("__") and before != ".":
            raise ExpressionError("names that begin with __ are not available", token.start)
    for begins, dot, word in zip([None, *words], words, words[1:], strict=False):
        bare = begins is None or (begins.kind == "mark" and begins.text not in ")]}")
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


def neighbours(words: list[Token]) -> Iterator[tuple[str, Token, str]]:
    """Each token with the texts of the one before and the one after; empty at the ends."""
    texts = ["", *(token.text for token in words), ""]
    return zip(texts, words, texts[2:], strict=False)


def selected(words: list[Token], whole: cel.Program) -> frozenset[tuple[str, str | None]]:
    """Each variable with the member taken of it right away; None where it is taken whole."""
    variables = set(whole.variables())
    return frozenset(
        (token.text, _member(words[at + 1 : at + 4]))
        for at, (before, token, after) in enumerate(neighbours(words))
        if token.kind == "word" and token.text in variables and before != "." and after != "("
    )


def _member(follows: list[Token]) -> str | None:
    """The name in `.name` or `["name"]`, or None for whatever else follows."""
    marks = [token.text for token in follows if token.kind == "mark"]
    if marks[:1] == ["."] and len(follows) > 1:
        return follows[1].text
    if marks == ["[", "]"] and len(follows) == 3 and _PLAIN_QUOTED.fullmatch(follows[1].text):
        return follows[1].text[1:-1]
    return None
