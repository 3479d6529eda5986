"""Whether JSON-like values keep the constraints of their fields, and what absent fields mean."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from services.chassis.ids import SLUG
from services.chassis.rules import Constraint, FieldRule

NAME_LIKE: Final = re.compile(r"[a-z](?:[a-z0-9_-]{0,61}[a-z0-9])?")

Fault = tuple[str, str]


def faults(fields: Sequence[FieldRule], value: Mapping[str, Any], path: str) -> Iterator[Fault]:
    """Every broken constraint in a message's value: a dotted path, a sentence without the value."""
    for field in fields:
        here = f"{path}.{field.name}" if path else field.name
        if field.name in value:
            yield from _faults_of(field, value[field.name], here)
        elif field.constraint.required:
            yield here, "is required"


def filled(fields: Sequence[FieldRule], value: Mapping[str, Any]) -> dict[str, Any]:
    """The value with every absent field spelt out, at every depth."""
    return {
        field.name: _filled_one(field, value[field.name]) if field.name in value else field.absent
        for field in fields
    }


def references(
    fields: Sequence[FieldRule], value: Mapping[str, Any], path: str
) -> Iterator[tuple[str, str, str]]:
    """Every reference in a message's value: path, kind, name; one of the choices is none."""
    for field in fields:
        here = f"{path}.{field.name}" if path else field.name
        found = value.get(field.name)
        if found and _refers(field.constraint, found):
            yield here, field.constraint.reference, found
        for index, inner in enumerate(_messages(field, found)):
            where = f"{here}[{index}]" if field.many == "list" else here
            yield from references(field.fields, inner, where)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """` (did you mean x?)`, or nothing where no known word is near."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


def _faults_of(field: FieldRule, value: Any, here: str) -> Iterator[Fault]:
    rule = field.constraint
    if rule.required and not value:
        yield here, "is required"
    elif rule.choices and value and value not in rule.choices and not _refers(rule, value):
        words = ", ".join(rule.choices) + (f", or name a {rule.reference}" * bool(rule.reference))
        yield here, f"must be one of {words}{did_you_mean(str(value), rule.choices)}"
    if rule.max_length and isinstance(value, str | list | dict) and len(value) > rule.max_length:
        yield here, f"is longer than {rule.max_length}"
    if rule.name_like and not all(
        map(NAME_LIKE.fullmatch, [value] if field.many == "one" else value)
    ):
        yield here, "must be lower-case letters, digits, - and _, beginning with a letter"
    for index, inner in enumerate(_messages(field, value)):
        where = f"{here}[{index}]" if field.many == "list" else here
        yield from faults(field.fields, inner, where)


def _refers(rule: Constraint, value: str) -> bool:
    """Whether a value names an object; where there are choices too, only what can be a name."""
    if not rule.reference or not rule.choices:
        return bool(rule.reference)
    return value not in rule.choices and bool(SLUG.fullmatch(value))


def _filled_one(field: FieldRule, value: Any) -> Any:
    if field.shape != "message":
        return value
    if field.many == "list":
        return [filled(field.fields, item) for item in value]
    return filled(field.fields, value)


def _messages(field: FieldRule, value: Any) -> Sequence[Mapping[str, Any]]:
    if field.shape != "message" or not value:
        return ()
    return value if field.many == "list" else (value,)
