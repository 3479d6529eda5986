"""Runs and transfers that a caller begins once a request id, however often they ask."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.chassis.database import Transaction
from services.chassis.errors import FailedPrecondition
from services.executor.store import run_requests


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, by which id; without one each time is a first time."""

    tenant_id: UUID
    principal_id: UUID
    request_id: UUID | None


async def first_of(tx: Transaction, request: Request, wanted: Any, new_id: UUID) -> UUID | None:
    """What an earlier request of the same id has begun; None where this is the first.

    Raises FailedPrecondition where that one wanted something else.
    """
    if request.request_id is None:
        return None
    asked = hashlib.sha256(canonical(wanted)).digest()
    first_hash, first = await run_requests.take(
        tx,
        tenant_id=request.tenant_id,
        principal_id=request.principal_id,
        request_id=request.request_id,
        request_hash=asked,
        execution_id=new_id,
    )
    if first_hash != asked:
        raise FailedPrecondition(
            "this request_id was used for another run", reason="REQUEST_ID_REUSED"
        )
    return None if first == new_id else first


def canonical(value: object) -> bytes:
    """JSON that is the same for equal values. Raises ValueError for a number that JSON has not."""
    try:
        return _PLAIN.encode(value).encode()
    except UnicodeEncodeError:
        # A text that was cut inside a character is JSON only where it is escaped.
        return _ESCAPED.encode(value).encode()


def _encoder(*, escaped: bool) -> json.JSONEncoder:
    return json.JSONEncoder(
        ensure_ascii=escaped, sort_keys=True, allow_nan=False, separators=(",", ":")
    )


_PLAIN: Final = _encoder(escaped=False)
_ESCAPED: Final = _encoder(escaped=True)
