"""Whether the payloads that services tell are what the tenant says of the types of events."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from services.chassis import json_schema
from services.chassis.errors import InvalidArgument, Violation
from services.chassis.evaluator import LIGHT, weighs_at_most
from services.chassis.expressions import Json
from services.executor.store.projected import ProjectedObject

MOST_FAULTS: Final = 20
"""Of a call that are told; there may be more."""

Typed = tuple[str, Json]
"""An event's type and its payload."""


async def check_payloads(new: Sequence[Typed], known: Sequence[ProjectedObject]) -> None:
    """Raise InvalidArgument with the places of payloads that the active EventTypes do not let in.

    An event of a type of which nothing is said is free.
    """
    schemas = {each.spec["type"]: each.spec["schema"] for each in known}
    held = [payload for event_type, payload in new if event_type in schemas]
    if weighs_at_most(held, LIGHT):
        found = _first_faults(new, schemas)
    else:
        # It ends by itself, in seconds at the worst; others have their turns meanwhile.
        found = await asyncio.to_thread(_first_faults, new, schemas)
    if found:
        raise InvalidArgument(
            f"{found[0].field}: {found[0].description}",
            reason="PAYLOAD_UNLIKE_TYPE",
            violations=found,
        )


def _first_faults(new: Sequence[Typed], schemas: Mapping[str, Any]) -> list[Violation]:
    return list(islice(_faults(new, schemas), MOST_FAULTS))


def _faults(new: Sequence[Typed], schemas: Mapping[str, Any]) -> Iterator[Violation]:
    for index, (event_type, payload) in enumerate(new):
        schema, path = schemas.get(event_type, True), f"events[{index}].payload"
        for where, sentence in json_schema.faults(schema, payload, path):
            yield Violation(where, sentence)
