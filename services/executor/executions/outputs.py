"""What a run comes to: its output's fields, each mapped from what the run has seen."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.chassis.errors import InvalidArgument
from services.chassis.evaluator import Evaluator, View
from services.chassis.expressions import ExpressionError, Json, MissingValue

LARGEST_OUTPUT: Final = 64 * 1024
"""Bytes of an output as JSON."""
DEEPEST: Final = 24
"""Values inside values: protobuf reads 100 messages inside one another, three for each value."""


class OutputInvalid(InvalidArgument):
    """An output that cannot be made; the message says why of every field, and holds no value."""

    reason = "OUTPUT_INVALID"


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """Where one field comes from and where it goes: a CEL expression, and names joined by dots."""

    source: str
    target: str
    transform: str = ""
    default: Json = None
    required: bool = False

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "FieldMapping":
        """The mapping in a projected spec."""
        return cls(
            source=spec["source"],
            target=spec["target"],
            transform=spec.get("transform") or "",
            default=spec.get("default"),
            required=bool(spec.get("required")),
        )


async def mapped(
    mappings: Sequence[FieldMapping],
    seen: Mapping[str, Any],
    evaluator: Evaluator,
    owner: Hashable = None,
) -> dict[str, Json]:
    """The fields that have a value. Raises OutputInvalid, and Unavailable to be tried again."""
    view, found, faults = evaluator.seeing(seen, owner), dict[str, Json](), list[str]()
    for mapping in mappings:
        try:
            value = await _value(mapping, view, evaluator, owner)
        except ExpressionError as error:
            faults.append(f"{mapping.target}: {error.message}")
            continue
        if value is not None:
            _put(found, mapping.target.split("."), value)
        elif mapping.required:
            faults.append(f"{mapping.target}: is required and has no value")
    if faults:
        raise OutputInvalid("; ".join(faults))
    _check(found)
    return found


async def _value(mapping: FieldMapping, view: View, evaluator: Evaluator, owner: Hashable) -> Json:
    """The source's value transformed, or else the default as it stands."""
    try:
        value = await view.evaluate(mapping.source)
    except MissingValue:
        value = None
    if value is None:
        return mapping.default
    if not mapping.transform:
        return value
    return await evaluator.seeing({"value": value}, owner).evaluate(mapping.transform)


def _put(found: dict[str, Json], path: Sequence[str], value: Json) -> None:
    *outer, last = path
    place: Any = found
    for name in outer:
        place = place.setdefault(name, {})
    place[last] = value


def _check(found: dict[str, Json]) -> None:
    """Refuse what an answer could not carry."""
    if not _within(found, DEEPEST):
        raise OutputInvalid(f"it has more than {DEEPEST} values inside one another")
    try:
        size = len(json.dumps(found, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise OutputInvalid("it holds half of a surrogate pair, which is no text") from None
    if size > LARGEST_OUTPUT:
        raise OutputInvalid(f"it is longer than {LARGEST_OUTPUT} bytes as JSON")


def _within(value: Json, depth: int) -> bool:
    if not isinstance(value, list | dict):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_within(each, depth - 1) for each in inner)
