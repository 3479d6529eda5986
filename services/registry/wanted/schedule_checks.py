"""Whether a schedule can be followed: pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.chassis.recurrence import Recurrence, RecurrenceError

LARGEST_INPUT: Final = 64 * 1024

Found = Iterator[tuple[str, str]]


def check_schedule(schedule: Mapping[str, Any], path: str) -> Found:
    """The faults of a schedule that stands at `path`."""
    if len(json.dumps(schedule["input"], ensure_ascii=False).encode()) > LARGEST_INPUT:
        yield f"{path}.input", f"must have at most {LARGEST_INPUT} bytes as JSON"
    try:
        recurrence = Recurrence.said(schedule)
        if recurrence is not None:
            recurrence.check()
    except RecurrenceError as error:
        yield f"{path}.{error.field}".removesuffix("."), error.message
