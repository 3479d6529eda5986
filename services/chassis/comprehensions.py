"""The comprehensions of an expression, seen in its text: where each stands and what it names.

`list.map(x, x.id)` goes through a list with one variable; `all`, `exists`, `exists_one` and
`filter` do likewise. Each inside another multiplies the time, so that few may nest, and nothing in
the text bounds what is left: whatever has one runs in a process that can be killed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.chassis.expression_tokens import CLOSE, OPEN, ExpressionError, Token

MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
MOST_NESTED: Final = 2
"""Comprehensions inside each other."""


@dataclass(frozen=True, slots=True)
class Comprehension:
    """One comprehension: its variable, and the tokens in which that is known, first and last."""

    variable: str
    first: int
    last: int

    def holds(self, at: int) -> bool:
        """Whether the token at this place stands where the variable is known."""
        return self.first <= at <= self.last


def comprehensions(words: Sequence[Token]) -> list[Comprehension]:
    """Those in an expression. Raises ExpressionError for one that is wrong or nests too deep."""
    found: list[Comprehension] = []
    opened: list[tuple[int, bool]] = []
    for at, token in enumerate(words):
        if token.kind != "mark":
            continue
        if token.text in OPEN:
            begins = _begins(words, at)
            opened.append((at, begins))
            if sum(each for _, each in opened) > MOST_NESTED:
                message = f"more than {MOST_NESTED} comprehensions inside each other"
                raise ExpressionError(message, words[at - 1].start)
        elif token.text in CLOSE and opened:
            start, is_one = opened.pop()
            if is_one:
                found.append(Comprehension(words[start + 1].text, start + 1, at - 1))
    return found


def _begins(words: Sequence[Token], at: int) -> bool:
    """Whether the bracket at this place opens a comprehension."""
    macro = words[at - 1]
    if at == 0 or words[at].text != "(" or macro.kind != "word" or macro.text not in MACROS:
        return False
    variable = words[at + 1 : at + 3]
    named = len(variable) == 2 and variable[0].kind == "word" and variable[1].text == ","
    if at < 2 or words[at - 2].text != "." or not named:
        raise ExpressionError(f"{macro.text}() is called as list.{macro.text}(x, …)", macro.start)
    return True
