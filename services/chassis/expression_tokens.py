"""The tokens of an expression, and the error that tells where in its text a fault stands."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.chassis.errors import InvalidArgument


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
OPEN: Final = frozenset("([{")
CLOSE: Final = frozenset(")]}")


def tokens(text: str, start: int = 0) -> Iterator[Token]:
    """The tokens from `start` on, without spaces and comments. Raises ExpressionError."""
    while start < len(text):
        found = _TOKEN.match(text, start)
        if found is None:
            raise ExpressionError("an unexpected character, or a text without its end", start)
        if found.lastgroup != "space":
            yield Token(str(found.lastgroup), found[0], start)
        start = found.end()


def neighbours(words: list[Token]) -> Iterator[tuple[str, Token, str]]:
    """Each token with the texts of the one before and the one after; empty at the ends."""
    texts = ["", *(token.text for token in words), ""]
    return zip(texts, words, texts[2:], strict=False)
