"""What people may see of an answer: names and shapes, short values, no secret.

Fails closed: what is not known to be harmless is not shown.
"""

from collections.abc import Collection, Mapping
from typing import Final

from services.chassis.expressions import Json
from services.chassis.redaction import SECRET_NAME, redact
from services.chassis.secret import MASK, Secret

LONGEST_SHOWN: Final = 64
LONGEST_SENTENCE: Final = 300
DEEPEST: Final = 6
MOST_MEMBERS: Final = 50
MORE: Final = "…"
SHORTEST_HIDDEN: Final = 6
"""Characters; a shorter secret, a user's name say, hides only a text that is nothing else."""


def masked(value: object, secrets: Collection[Secret]) -> Json:
    """`value` as it may be shown; `secrets` are those its call was made with."""
    return _masked(value, _in_clear(secrets), DEEPEST)


def without(values: Mapping[str, Json], secrets: Collection[Secret]) -> dict[str, Json]:
    """Values in full, but for texts and numbers that would give one of the secrets away."""
    hidden = _in_clear(secrets)
    return {name: _without(value, hidden) for name, value in values.items()}


def sentence(text: str, secrets: Collection[Secret], longest: int = LONGEST_SENTENCE) -> str:
    """A message from elsewhere as one line without secrets, cut to `longest` characters."""
    shown = MASK if _is_secret(text, _in_clear(secrets)) else _printable(redact(text))
    return shown if len(shown) <= longest else shown[:longest] + MORE


def _masked(value: object, hidden: tuple[str, ...], depth: int) -> Json:
    if isinstance(value, dict):
        return _members(value, hidden, depth) if depth else MORE
    if isinstance(value, list):
        shown = [_masked(each, hidden, depth - 1) for each in value[:MOST_MEMBERS]] if depth else []
        return [*shown, MORE] if len(value) > len(shown) else shown
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return MASK if str(value) in hidden else value
    return _text(value, hidden) if isinstance(value, str) else MASK


def _without(value: Json, hidden: tuple[str, ...]) -> Json:
    if isinstance(value, dict):
        return {
            MASK if _gives_away(name, hidden) else name: _without(each, hidden)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_without(each, hidden) for each in value]
    if value is None or isinstance(value, bool):
        return value
    return MASK if _gives_away(str(value), hidden) else value


def _gives_away(text: str, hidden: tuple[str, ...]) -> bool:
    return any(each == text or (len(each) >= SHORTEST_HIDDEN and each in text) for each in hidden)


def _members(value: dict[object, object], hidden: tuple[str, ...], depth: int) -> Json:
    found: dict[str, Json] = {}
    for name, each in list(value.items())[:MOST_MEMBERS]:
        named = str(name)
        secret = bool(SECRET_NAME.search(named)) and each is not None
        found[_text(named, hidden)] = MASK if secret else _masked(each, hidden, depth - 1)
    if len(value) > MOST_MEMBERS:
        found[MORE] = MORE
    return found


def _text(value: str, hidden: tuple[str, ...]) -> str:
    if _is_secret(value, hidden) or redact(value) != value:
        return MASK
    shown = _printable(value[:LONGEST_SHOWN])
    return shown + MORE if len(value) > LONGEST_SHOWN else shown


def _in_clear(secrets: Collection[Secret]) -> tuple[str, ...]:
    return tuple(each.reveal().decode(errors="replace") for each in secrets if each.reveal())


def _is_secret(value: str, hidden: tuple[str, ...]) -> bool:
    return any(each in value for each in hidden)


def _printable(text: str) -> str:
    """Without what PostgreSQL's jsonb refuses, or a terminal obeys."""
    return "".join(each if each.isprintable() else " " for each in text)
