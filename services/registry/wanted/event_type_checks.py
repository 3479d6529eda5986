"""Whether types of events make sense: pure."""

from collections.abc import Iterator, Mapping

from services.chassis import json_schema
from services.chassis.ids import DOTTED, DOTTED_RULE
from services.registry.wanted.objects import Complete, Key


def check_event_type(one: Complete, known: Mapping[Key, Complete]) -> Iterator[tuple[str, str]]:
    """The faults of a type of event: a type has one schema, and that can be checked."""
    spec = one.spec()
    if not DOTTED.fullmatch(spec["type"]):
        yield "spec.type", f"must be {DOTTED_RULE}"
    others = (each for each in known.values() if each.kind == one.kind and each.key != one.key)
    for other in others:
        if other.fields["spec.type"] == spec["type"]:
            yield "spec.type", f"is the type of EventType {other.name} already"
    for inner, sentence in json_schema.problems(spec["schema"] or {}):
        yield f"spec.schema{inner}", sentence
