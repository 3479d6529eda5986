"""What people see of bodies whose endpoint says what they must not see. Pure.

A path masks what it points at in JSON; of a body in which nothing can be pointed at (no JSON, or
too long to be searched) nothing is shown. What is stored, signed and sent again stays as it is.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from services.chassis import strict_json
from services.chassis.expressions import Json
from services.chassis.jsonpath import JsonPath, JsonPathError
from services.chassis.secret import MASK

LARGEST: Final = 256 * 1024
"""Bytes; a path takes up to 50 ms in so many."""


def rules_of(spec: Mapping[str, Any] | None) -> Sequence[str]:
    """What an endpoint of this spec does not let people see."""
    # What was projected before there were rules has none.
    return (spec or {}).get("redact") or ()


def shown(body: bytes, rules: Sequence[str]) -> bytes:
    """The body as people may see it; exactly as it is where there are no rules."""
    if not rules:
        return body
    try:
        return _masked(body, rules) if len(body) <= LARGEST else b""
    except (ValueError, RecursionError, JsonPathError):
        return b""


def _masked(body: bytes, rules: Sequence[str]) -> bytes:
    value = cast("Json", strict_json.parse(body))
    for rule in rules:
        value = JsonPath.of_place(rule).masked(value, MASK)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
