"""What an expression takes of the values there are, seen in its text, and the values cut to that.

`event.payload.number > 7` takes `("event", "payload", "number")`: the rest of a payload need not be
handed over, whose size is most of what an evaluation costs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

from services.chassis.comprehensions import Comprehension
from services.chassis.expression_tokens import Token, neighbours

Path: TypeAlias = tuple[str, ...]
"""A variable and members, each below the one before; the last is taken whole."""

_PLAIN_QUOTED: Final = re.compile(r"'[^'\\]+'|\"[^\"\\]+\"")
_Wanted: TypeAlias = dict[str, "_Wanted | None"]


def paths(
    words: list[Token], variables: Iterable[str], bound: Sequence[Comprehension]
) -> tuple[Path, ...]:
    """Each place in which a variable is named, in order; those of comprehensions are none."""
    free = frozenset(variables)
    return tuple(
        (token.text, *_members(words, at + 1))
        for at, (before, token, after) in enumerate(neighbours(words))
        if token.kind == "word" and token.text in free and before != "." and after != "("
        if not any(one.variable == token.text and one.holds(at) for one in bound)
    )


def _members(words: list[Token], at: int) -> list[str]:
    """The names in `.name` and `["name"]` from a place on, up to whatever else follows."""
    names = []
    while True:
        follows = [token.text for token in words[at : at + 3]]
        if follows[:1] == ["."] and words[at + 1].kind == "word" and follows[2:] != ["("]:
            names.append(follows[1])
            at += 2
        elif follows[::2] == ["[", "]"] and _PLAIN_QUOTED.fullmatch(follows[1]):
            names.append(follows[1][1:-1])
            at += 3
        else:
            return names


def narrowed(values: Mapping[str, Any], taken: frozenset[Path]) -> dict[str, Any]:
    """Only what lies on these paths; what is not an object stays whole."""
    return _cut(values, _wanted(taken))


@lru_cache(maxsize=2048)
def _wanted(taken: frozenset[Path]) -> _Wanted:
    wanted: _Wanted = {}
    for path in sorted(taken, key=len):
        _want(wanted, path)
    return wanted


def _want(wanted: _Wanted, path: Path) -> None:
    for name in path[:-1]:
        below = wanted.setdefault(name, {})
        if below is None:
            # A shorter path takes it whole.
            return
        wanted = below
    wanted.setdefault(path[-1], None)


def _cut(values: Mapping[str, Any], wanted: _Wanted) -> dict[str, Any]:
    return {
        name: _cut(values[name], below)
        if below and isinstance(values[name], dict)
        else values[name]
        for name, below in wanted.items()
        if name in values
    }
